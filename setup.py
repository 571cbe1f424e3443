"""setup.py. The role folders beside rlvid/ are imported as rlvid.<role>."""

from pathlib import Path

from setuptools import find_packages, setup

ROLES = ("actors", "learners", "rewards", "launch", "configs")

DATA_FOLDERS = {
    "rlvid.models.tiny.judge": "rlvid/models/tiny/judge",
    "rlvid.models.tiny.video_text": "rlvid/models/tiny/video_text",
    "rlvid.models.tiny.reward_model": "rlvid/models/tiny/reward_model",
    "rlvid.launch.environment": "launch/environment",
    "rlvid.models.tiny.pipeline": "rlvid/models/tiny/pipeline",
    "rlvid.models.tiny.vlm_judge": "rlvid/models/tiny/vlm_judge",
}
"""Folders without Python packages that ship; setuptools wants each folder named as a package."""


def packages_of(role: str) -> list[str]:
    return [f"rlvid.{role}", *(f"rlvid.{role}.{name}" for name in find_packages(role))]


def library_packages() -> list[str]:
    """Everything under rlvid/ that is not reached through one of the five links."""
    names = find_packages(include=["rlvid", "rlvid.*"])
    return [name for name in names if not any(name.startswith(f"rlvid.{role}") for role in ROLES)]


def data_packages() -> list[str]:
    """Every data folder and the folders in it, by the name setuptools gives them."""
    names = []
    for name, folder in DATA_FOLDERS.items():
        root = Path(folder)
        inner = [path for path in root.rglob("*") if path.is_dir() and path.name != "__pycache__"]
        names += [".".join([name, *path.relative_to(root).parts]) for path in [root, *inner]]
    return names


setup(
    packages=sorted(
        {*library_packages(), *(p for role in ROLES for p in packages_of(role)), *data_packages()}
    ),
    package_dir={f"rlvid.{role}": role for role in ROLES},
    package_data={
        "rlvid": ["py.typed"],
        "rlvid.observability": ["*.jinja2"],
        "rlvid.configs": ["**/*.yaml", "*.md"],
        "rlvid.enhancement": ["templates/*.yaml", "lexicons/*.yaml"],
        "rlvid.launch.data_engine": ["templates/*.yaml"],
        "rlvid.launch": ["*.sh", "*.sbatch", "*.yaml", "*.md", "built_from.txt"],
        "rlvid.actors": ["*.md"],
        "rlvid.learners": ["*.md"],
        "rlvid.rewards": ["*.md"],
        "rlvid.rewards.specialists": ["*.md"],
        "rlvid.rewards.judges": ["*.md", "prompts/*.yaml"],
        **{name: ["*"] for name in data_packages()},
    },
)
