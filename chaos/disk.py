"""A file system of its own for the database, which can be full: a tmpfs whose size is cut down to what is used, and given back."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SIZE = "4g"  # of which is taken what is used
TRIES = 20


@dataclass(frozen=True)
class Disk:
    """reason: why there is none."""

    folder: Path
    reason: str | None = None

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Nothing more can be written while the block lasts."""
        try:
            for _ in range(TRIES):  # what is written in between makes the new size too small
                system = os.statvfs(self.folder)
                used = (system.f_blocks - system.f_bfree) * system.f_frsize
                if _mount("-o", f"remount,size={used}", str(self.folder)) is None:
                    break
                time.sleep(0.05)
            yield
        finally:
            _mount("-o", f"remount,size={SIZE}", str(self.folder))

    def forget(self, kept: Path | None = None) -> None:
        """Gone, with what is on it; first copied to `kept`, where that is given."""
        if self.reason is None:
            if kept:
                subprocess.run(["cp", "-a", str(self.folder), str(kept)], check=False)
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)


def small_disk(folder: Path) -> Disk:
    """Mounted at the folder; where this process may not mount, the reason says so and nothing happened."""
    folder.mkdir()
    return Disk(folder, _mount("-t", "tmpfs", "-o", f"size={SIZE},mode=0755", "starsearch-chaos", str(folder)))


def _mount(*arguments: str) -> str | None:
    """What was wrong; None where nothing was."""
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else None
