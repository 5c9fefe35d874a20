"""What has been measured, in one JSON file that grows cell by cell."""

import json
import os
import pathlib


class Results:
    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.data = json.loads(self.path.read_text()) if self.path.exists() else {}
        for part in ("machine", "cells", "errors"):
            self.data.setdefault(part, {})

    def __getitem__(self, part):
        return self.data[part]

    def save(self):
        temporary = self.path.with_name(self.path.name + ".partial")
        temporary.write_text(json.dumps(self.data, indent=1))
        os.replace(temporary, self.path)

    def calm(self, cell):
        """The least canary of a cell against the best ever seen with as many threads: 1 on a machine at rest."""
        threads = cell["threads"]
        best = max(max(c["canary"]) for c in self.data["cells"].values() if c["threads"] == threads)
        return min(cell["canary"]) / best


# A cell during which the machine did less than this share of its best is measured again by the next call.
CALM = 0.9
