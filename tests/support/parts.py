"""Install the Debian programs that tests talk to, where this is Debian and we are root; else say what is missing.

`make test` runs this. Tests whose part is missing are skipped by name.
"""

import os
import shutil
import subprocess
import sys
import time

# program that shows that the package is there -> package
PARTS = {
    "chromium": "chromium",
    "docker": "docker.io",
    "dockerd": "docker.io",
    "docker-registry": "docker-registry",
    "htpasswd": "apache2-utils",
    "mmdebstrap": "mmdebstrap",
    "mpirun": "openmpi-bin",
    "pg_createcluster": "postgresql",
    "pigz": "pigz",
    "igzip": "isal",
    "skopeo": "skopeo",
    "umoci": "umoci",
}
ATTEMPTS = 3
_APT = ["apt-get", "-qq", "-o", "Acquire::Retries=5", "-o", "DPkg::Lock::Timeout=120"]


def absent() -> list[str]:
    """The packages whose programs are missing here."""
    # Debian keeps daemons in sbin, which is not on every root's PATH
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return sorted({package for program, package in PARTS.items() if not shutil.which(program, path=path)})


def install(packages: list[str]) -> str:
    """Install Debian packages without starting their services; gives what apt said if that failed."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    said = ""
    for attempt in range(ATTEMPTS):
        time.sleep(5 * attempt)
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run([*_APT, *command], env=environment, capture_output=True, text=True, check=False)
            said = done.stderr.strip()[-3000:]
        if done.returncode == 0:
            return ""
    return said or f"apt-get ended with status {done.returncode}"


def main() -> None:
    packages = absent()
    if not packages:
        return
    names = " ".join(packages)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        print(f"parts: tests that need {names} will be skipped; root on Debian gets them by itself", file=sys.stderr)
        return
    print(f"parts: installing {names}", file=sys.stderr)
    if said := install(packages):
        sys.exit(f"parts: could not install {names}: {said}")


if __name__ == "__main__":
    main()
