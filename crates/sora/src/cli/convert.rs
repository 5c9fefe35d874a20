//! `sora convert`.

use sora::{Kind, Model, check_writable};

use super::args::Convert;
use super::{Printed, human_bytes, progress, warn};

pub(super) fn convert(args: &Convert) -> Printed {
    Kind::of(&args.output)?;
    check_writable(&args.output)?;
    let model = Model::load(&args.input)?;
    warn(&model.warnings);
    progress::check()?;
    let bytes = model.save(&args.output)?;
    Ok(format!("wrote {} ({})", args.output.display(), human_bytes(bytes)))
}
