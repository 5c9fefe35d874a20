# The three open emoji sets, for the examples pictures and two-tasks: their folders in $google, $twitter and $openmoji.
npm_package emoji-datasource-google 16.0.0 fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438
google=$package
npm_package emoji-datasource-twitter 16.0.0 f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877
twitter=$package
npm_package openmoji 17.0.0 55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68
openmoji=$package
