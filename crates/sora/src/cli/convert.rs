//! `sora convert`.

use sora::exec::Options;
use sora::{Failure, Kind, Model, check_writable};

use super::args::Convert;
use super::{Printed, engine_failure, human_bytes, progress, warn};

pub(super) fn convert(args: &Convert) -> Printed {
    Kind::of(&args.output)?;
    check_writable(&args.output)?;
    let mut model = Model::load(&args.input)?;
    warn(&model.warnings);
    progress::check()?;
    model.packed = None;
    if args.pack {
        if Kind::of(&args.output)? != Kind::Sora {
            let hint = "Write a .sora file, or leave out --pack.";
            let place = args.output.display().to_string();
            return Err(Failure::new("Only .sora files hold packed weights.", place, hint));
        }
        model.pack(Options::default()).map_err(engine_failure(&args.input))?;
    }
    let bytes = model.save(&args.output)?;
    Ok(format!("wrote {} ({})", args.output.display(), human_bytes(bytes)))
}
