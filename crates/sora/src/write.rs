//! Files that appear whole or not at all.

use std::io::Write;
use std::path::Path;

use crate::Failure;

/// Writes `bytes` to `path` atomically: into a temporary file in the same folder, which takes the name only
/// once everything is on disk. On any error, and when the process dies, `path` is as it was before.
///
/// # Errors
/// [`Failure`] naming `path` when the folder is missing or not writable, or the disk is full.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::io("write the file", path, &error);
    let mut file = temporary_beside(path).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// Checks that `path` can be written, so that hours of work do not end in an unwritable folder.
///
/// # Errors
/// As [`write_atomically`].
pub fn check_writable(path: &Path) -> Result<(), Failure> {
    if path.is_dir() {
        let error = std::io::Error::from(std::io::ErrorKind::IsADirectory);
        return Err(Failure::io("write the file", path, &error));
    }
    temporary_beside(path).map(drop).map_err(|error| Failure::io("write the file", path, &error))
}

fn temporary_beside(path: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".sora-").suffix(".partial");
    // Like any new file, not private to the owner as temporary files are.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o644));
    }
    builder.tempfile_in(folder)
}
