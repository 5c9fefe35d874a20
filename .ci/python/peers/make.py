"""Making files once: a recipe that fails leaves a note instead, and is not tried again until the note is removed."""

import os
import time
import traceback


def make(path, recipe):
    """Calls recipe(temporary path) unless `path` or its note exists; the file takes its name when it is complete."""
    note = path.with_name(path.name + ".failed")
    if path.exists() or note.exists():
        return
    start = time.perf_counter()
    temporary = path.with_name("making." + path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        recipe(temporary)
        os.replace(temporary, path)
        print(f"{path.name}: {time.perf_counter() - start:.1f} s", flush=True)
    except Exception:  # Any converter may fail in any way; the others go on.
        note.write_text(traceback.format_exc())
        print(f"{path.name}: FAILED, see {note}", flush=True)
