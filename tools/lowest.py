"""Print the lowest versions that settings.ini allows, as constraints for pip: `python tools/lowest.py > lowest.txt`.

They are those of the package and of every extra but `dev`, since development tools are no promise to users. An argument
such as `torch==2.13.0` replaces a bound that cannot be installed on this machine."""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

SETTINGS = Path(__file__).resolve().parent.parent / "settings.ini"
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,-]+\])?(?P<bounds>.*)")


def lowest(settings: Path = SETTINGS) -> dict[str, str]:
    "Return the lowest version allowed of each requirement, by name. Raises `ValueError` for one without a lower bound."
    config = ConfigParser(delimiters=["="])
    config.read(settings, encoding="utf-8")
    named = {name: text for name, text in config["DEFAULT"].items() if name.endswith("requirements")}
    named.pop("dev_requirements")
    versions = {}
    for requirement in " ".join(named.values()).split():
        found = REQUIREMENT.fullmatch(requirement)
        bound = re.search(r"[>=]=(\d[\w.]*)", found["bounds"])
        if not bound:
            advice = f"write one, as in {found['name']}>=1.0"
            raise ValueError(f"{requirement} in {settings.name} has no lower bound; {advice}")
        versions[found["name"]] = bound[1]
    return versions


if __name__ == "__main__":
    replaced = dict(argument.split("==") for argument in sys.argv[1:])
    print(*(f"{name}=={version}" for name, version in (lowest() | replaced).items()), sep="\n")
