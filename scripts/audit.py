"""Ask for known weaknesses of the pinned versions: `make audit`, which gives pip-audit an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SERVICES = ("pypi", "osv")


def main(constraints: str) -> int:
    """Report on a file of constraints: 0 without weaknesses, 1 with some, 2 where nothing could be asked."""
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        # Of every pin, whatever Python it is for.
        lines = Path(constraints).read_text(encoding="utf-8").splitlines()
        pins.write_text("\n".join(line.partition(";")[0] for line in lines), encoding="utf-8")
        known = next(filter(None, (asked(service, pins) for service in SERVICES)), None)
    if known is None:
        print(f"No service could be reached ({', '.join(SERVICES)}): nothing of {constraints} was audited.")
        return 2
    weak = {name: found for name, found in known.items() if found}
    for name, found in weak.items():
        print(f"{name}: {'; '.join(found)}")
    unknown = [name for name, found in known.items() if found is None]
    print(f"{constraints}: {len(known) - len(unknown)} packages audited, {len(weak)} with known weaknesses.")
    if unknown:
        print(f"Not known to the service: {', '.join(unknown)}.")
    return int(bool(weak))


def asked(service: str, pins: Path) -> dict[str, list[str] | None] | None:
    """Ask a service for the weaknesses of each package, None of one it does not know.

    Returns:
        None where nobody answers, or knows not one of them.
    """
    options = ["--disable-pip", "--no-deps", "--format", "json", "--progress-spinner", "off", "--timeout", "20"]
    command = [sys.executable, "-m", "pip_audit", *options, "--vulnerability-service", service, "-r", str(pins)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    try:
        packages: list[dict[str, Any]] = json.loads(said)["dependencies"]
    except (ValueError, KeyError):
        return None
    found = {
        f"{each['name']} {each.get('version', '')}".strip(): _weaknesses(each) if "vulns" in each else None
        for each in packages
    }
    return found if any(each is not None for each in found.values()) else None


def _weaknesses(package: dict[str, Any]) -> list[str]:
    return [f"{each['id']}, mended in {', '.join(each['fix_versions']) or 'none'}" for each in package["vulns"]]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
