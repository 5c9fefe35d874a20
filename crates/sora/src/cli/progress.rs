//! Progress bars on a terminal, and Ctrl-C.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sora::Failure;
use sora::compress::Progress;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Lets Ctrl-C end long work at its next step; a second Ctrl-C ends the process at once.
pub(super) fn watch_interrupts() {
    // Without a handler Ctrl-C still ends the process; outputs appear whole or not at all either way.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(1);
        }
        let _ = writeln!(std::io::stderr(), "\nstopping after this step; press Ctrl-C again to stop at once");
    });
}

/// Whether Ctrl-C was pressed.
pub(super) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Ends the work here if Ctrl-C was pressed.
pub(super) fn check() -> Result<(), Failure> {
    if interrupted() { Err(interruption()) } else { Ok(()) }
}

/// The failure that Ctrl-C leads to.
pub(super) fn interruption() -> Failure {
    Failure::new("Interrupted.", "Ctrl-C", "No file was written; start the command again when ready.")
}

/// Bars on standard error, only where that is a terminal.
pub(super) struct Bars {
    bar: Mutex<ProgressBar>,
}

impl Bars {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        Bars { bar: Mutex::new(bar) }
    }

    fn with(&self, act: impl FnOnce(&mut ProgressBar)) {
        if let Ok(mut bar) = self.bar.lock() {
            act(&mut bar);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.with(|bar| bar.finish_and_clear());
    }
}

impl Progress for Bars {
    fn stage(&self, name: &str, total: Option<u64>) {
        self.with(|bar| {
            bar.finish_and_clear();
            *bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            let template = match total {
                Some(_) => "{msg:24} {wide_bar} {pos}/{len} {eta}",
                None => "{msg:24} {spinner} {pos}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(name.to_owned());
        });
    }

    fn advance(&self, n: u64) {
        self.with(|bar| bar.inc(n));
    }

    fn cancelled(&self) -> bool {
        interrupted()
    }
}
