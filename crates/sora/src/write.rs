//! Files that appear whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::Failure;

/// What a file is written through.
pub(crate) type Sink = BufWriter<File>;

/// Writes a file's content.
type Fill<'a> = dyn FnOnce(&mut Sink) -> std::io::Result<()> + 'a;

/// A file that is still to be written. Large ones are written piece by piece, from where the pieces lie.
pub struct Draft<'a> {
    path: PathBuf,
    len: u64,
    fill: Box<Fill<'a>>,
}

impl<'a> Draft<'a> {
    /// A file of `len` bytes that `fill` writes.
    pub(crate) fn new(
        path: impl Into<PathBuf>,
        len: u64,
        fill: impl FnOnce(&mut Sink) -> std::io::Result<()> + 'a,
    ) -> Self {
        Draft { path: path.into(), len, fill: Box::new(fill) }
    }

    /// A file of these bytes.
    pub fn of(path: impl Into<PathBuf>, bytes: impl AsRef<[u8]> + 'a) -> Self {
        let len = bytes.as_ref().len() as u64;
        Draft::new(path, len, move |out| out.write_all(bytes.as_ref()))
    }

    /// The length that the file will have, in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file will be empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Writes `bytes` to `path` atomically: into a temporary file in the same folder, which takes the name only
/// once everything is on disk. On any error, and when the process dies, `path` is as it was before.
///
/// # Errors
/// [`Failure`] naming `path` when the folder is missing or not writable, or the disk is full.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    write_together(vec![Draft::of(path, bytes)])
}

/// Writes several files as [`write_atomically`] does one: all are on disk before the first takes its name, so that
/// a full disk leaves none of them.
///
/// # Errors
/// As [`write_atomically`].
pub fn write_together(files: Vec<Draft>) -> Result<(), Failure> {
    let failed = |path: &Path, error: std::io::Error| Failure::io("write the file", path, &error);
    let mut written = Vec::new();
    for Draft { path, fill, .. } in files {
        let file = temporary_beside(&path).map_err(|e| failed(&path, e))?;
        let filled = file.reopen().and_then(|file| {
            let mut out = BufWriter::new(file);
            fill(&mut out)?;
            out.into_inner()?.sync_all()
        });
        filled.map_err(|e| failed(&path, e))?;
        written.push((path, file));
    }
    for (path, file) in written {
        file.persist(&path).map_err(|e| failed(&path, e.error))?;
    }
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
    // The kind alone: the message would name a temporary file that the user never gave.
    builder.tempfile_in(folder).map_err(|error| error.kind().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_together_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let error =
            write_together(vec![Draft::of(&a, b"1"), Draft::of(folder.path().join("missing/b"), b"2")])
                .unwrap_err();
        assert!(!error.what.contains(".partial"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        write_together(vec![Draft::of(&a, b"1"), Draft::of(&b, b"2")]).unwrap();
        assert_eq!((std::fs::read(a).unwrap(), std::fs::read(b).unwrap()), (b"1".to_vec(), b"2".to_vec()));
    }
}
