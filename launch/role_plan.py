"""One role of a planned run: its processes, and the memory of each."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlvid.launch.host_memory import host_memory

SAMPLING_PHASES = ("data_engine", "grpo", "prompt_enhancement", "evaluate")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePlan:
    """One role of the run."""

    role: str
    num_processes: int
    num_cpus: float
    """Of one process."""
    num_gpus: float
    """Of one process."""
    memory_mib: dict[str, float]
    """Of one process where it computes, its GPU or RAM, by what it is for."""
    phases: tuple[str, ...]
    """In which it lives."""
    moved_mib: dict[str, float] = field(default_factory=dict)
    """Of one process in RAM either way."""
    not_counted: tuple[str, ...] = ()
    """Scorers whose working memory is in neither: their classes do not say it."""

    @property
    def total_mib(self) -> float:
        return sum(self.memory_mib.values())

    @property
    def host_mib(self) -> dict[str, float]:
        """Of one process in RAM, Python and libraries included, by what it is for."""
        return host_memory(self.role, self.memory_mib, self.num_gpus, self.moved_mib)

    @property
    def host_total_mib(self) -> float:
        return sum(self.host_mib.values())
