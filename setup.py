"""setup.py. The role folders beside rlvid/ are imported as rlvid.<role>."""

from setuptools import find_packages, setup

ROLES = ("actors", "learners", "rewards", "launch", "configs")


def packages_of(role: str) -> list[str]:
    return [f"rlvid.{role}", *(f"rlvid.{role}.{name}" for name in find_packages(role))]


def library_packages() -> list[str]:
    """Everything under rlvid/ that is not reached through one of the five links."""
    names = find_packages(include=["rlvid", "rlvid.*"])
    return [name for name in names if not any(name.startswith(f"rlvid.{role}") for role in ROLES)]


setup(
    packages=sorted({*library_packages(), *(p for role in ROLES for p in packages_of(role))}),
    package_dir={f"rlvid.{role}": role for role in ROLES},
    package_data={
        "rlvid": ["py.typed"],
        "rlvid.models.tiny": ["pipeline/**/*", "pipeline/*"],
        "rlvid.observability": ["*.jinja2"],
        "rlvid.configs": ["**/*.yaml", "*.md"],
        "rlvid.launch": ["*.sh", "*.md", "environment/**/*", "environment/*"],
        "rlvid.actors": ["*.md"],
        "rlvid.learners": ["*.md"],
        "rlvid.rewards": ["*.md"],
    },
)
