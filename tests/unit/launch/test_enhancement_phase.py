"""What phase prompt_enhancement hands to actors, scorers and learner, without processes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.config import Recipe
from rlvid.config.loader import check, default_values, lay_over
from rlvid.config.rewards import RewardsConfig, ServerConfig
from rlvid.enhancement.answer import Answer, Enhanced, Failure, Malformed
from rlvid.enhancement.lexicon import load_lexicon
from rlvid.enhancement.rewriter import Rewrite
from rlvid.enhancement.sampling import SampledAnswer
from rlvid.launch.artifact_names import check_enhancer, with_artifacts
from rlvid.launch.demand import demanded
from rlvid.launch.enhancement.checks import check_enhancement
from rlvid.launch.enhancement.heldout import examples_table, rewrite_heldout
from rlvid.launch.enhancement.rendering import rendering_of, score_rewrites, scores_of
from rlvid.launch.enhancement.rewriting import SERVER, with_rewriter_server
from rlvid.launch.enhancement.steps import reward_metrics, text_metrics
from rlvid.launch.groups import ScoredGroup
from rlvid.launch.loop.line import Issue
from rlvid.launch.phases.base import Artifacts, load_artifacts, save_artifacts
from rlvid.launch.planner import learner_roles
from rlvid.models.policy import Policy
from rlvid.observability.metrics import check_names
from rlvid.records import GroupSummary, Prompt, Score
from rlvid.rewards.scoring import GroupScores

BALL = Prompt(prompt_id="ball", text="crimson orb", facts={"colour": "red"}, questions=("red?",))
BOX = Prompt(prompt_id="box", text="a cube")
GOOD = Enhanced(reason="why", prompt="a red ball in the sun")
OTHER = Enhanced(reason="why", prompt="a blue ball at night")
BAD = Malformed(failure=Failure.MISSING_TAG)


def _recipe(**section: Any) -> Recipe:
    tree = {"name": "t", "prompt_enhancement": {"clips_per_rewrite": 2, **section}}
    return check(lay_over(default_values(Recipe), tree, Recipe))


def _issues(answers: list[list[Answer]], step: int = 3) -> dict[tuple[int, int], Issue]:
    return rendering_of(_recipe()).issues([(BALL, 0), (BOX, 5)], answers, step=step)


def test_all_rewrites_of_a_prompt_start_from_the_same_noise() -> None:
    """Then what their rewards differ by is the text."""
    issues = _issues([[GOOD, OTHER], [GOOD, GOOD]])
    seeds = {place: issue.task.noise_seeds for place, issue in issues.items()}
    assert seeds[0, 0] == seeds[0, 1]
    assert seeds[1, 0] == seeds[1, 1]
    assert len({*seeds[0, 0], *seeds[1, 0]}) == 4, "clips and prompts have noise of their own"


def test_the_noise_is_the_prompts_and_its_visits_and_nothing_elses() -> None:
    first, second = _issues([[GOOD], [GOOD]]), _issues([[OTHER], [BAD]], step=9)
    assert first[0, 0].task.noise_seeds == second[0, 0].task.noise_seeds
    rendering = rendering_of(_recipe())
    assert rendering.noise_seeds(BALL, 0) != rendering.noise_seeds(BALL, 1)


def test_a_malformed_answer_is_not_rendered_and_every_group_has_a_name_of_its_own() -> None:
    issues = _issues([[BAD, GOOD], [OTHER, BAD]])
    assert set(issues) == {(0, 1), (1, 0)}
    assert len({issue.task.group_id for issue in issues.values()}) == 2


def test_the_model_sees_the_rewrite_and_the_judge_the_users_words() -> None:
    prompt = _issues([[GOOD], [BAD]])[0, 0].task.prompt
    assert prompt.model_text == GOOD.prompt
    assert (prompt.text, prompt.facts, prompt.questions) == (BALL.text, BALL.facts, ("red?",))
    assert prompt.prompt_id == BALL.prompt_id


def _scored(issue: Issue, values: list[float | None]) -> ScoredGroup:
    group_id = issue.task.group_id
    scores = tuple(
        Score(group_id=group_id, index=n, scorer="physics", value=value)
        for n, value in enumerate(values)
    )
    summary = GroupSummary(
        group_id=group_id,
        lease_id="",
        actor_id="a",
        policy_version=0,
        weights_digest="",
        sample_s=0.0,
        num_forwards=1,
    )
    return ScoredGroup(
        task=issue.task,
        group=None,
        summary=summary,
        scores=GroupScores(scores=scores, decode_s=0.0, score_s=0.0),
    )


@dataclass
class _Ledger:
    dropped: list[str]

    def drop(self, group_id: str, reason: str) -> None:
        self.dropped.append(group_id)


@dataclass
class _Roles:
    """Scores whatever is issued but the last, which cost too many actors."""

    ledger: _Ledger
    values: list[list[float | None]]

    def run_issues(self, issues: list[Issue]) -> list[ScoredGroup]:
        return [_scored(issue, v) for issue, v in zip(issues, self.values, strict=False)]


def test_a_missing_score_is_missing_and_never_0() -> None:
    """A scorer that failed on one clip, a group that was lost, an answer without a clip."""
    issues = _issues([[GOOD, OTHER], [GOOD, BAD]])
    roles: Any = _Roles(_Ledger([]), [[0.5, 0.7], [0.5, None]])
    found = score_rewrites(roles, issues, scorers=["physics", "realism"], shape=(2, 2))
    assert found["physics"][0, 0] == pytest.approx(0.6)
    assert found["physics"][0, 1].isnan(), "a mean over other noise is no comparison"
    assert found["physics"][1].isnan().all()
    assert found["realism"].isnan().all()
    assert len(roles.ledger.dropped) == 2


def test_nothing_to_render_scores_nothing() -> None:
    roles: Any = _Roles(_Ledger([]), [])
    found = score_rewrites(roles, {}, scorers=["physics"], shape=(2, 2))
    assert found["physics"].isnan().all()
    assert scores_of([], ["physics"])["physics"].shape[0] == 0


def test_metrics_are_in_the_table_and_leave_out_what_is_missing() -> None:
    from rlvid.enhancement.rewards import reward_parts, rewrite_credit, text_scores

    recipe = _recipe()
    config = recipe.prompt_enhancement
    answers: list[list[Answer]] = [[GOOD, BAD], [OTHER, GOOD]]
    lexicon = load_lexicon("english")
    reward = config.reward
    text = text_scores(
        [BALL, BOX], answers, length=reward.length, intent=reward.intent, lexicon=lexicon
    )
    video = {"physics": torch.tensor([[0.5, torch.nan], [torch.nan, 0.25]])}
    weights = {"physics": 1.0}
    parts, _ = reward_parts(text, video, weights, reward)
    credited = rewrite_credit(
        text, video, weights, reward=reward, advantage=config.algorithm.advantage
    )
    found = text_metrics(text) | reward_metrics(parts, video, credited, ~text.is_malformed)
    check_names(found)
    assert found["enhance/malformed/frac"] == 0.25
    assert found["enhance/failure_missing_tag/count"] == 1.0
    assert found["rewards/physics/mean"] == 0.375
    assert found["rewards/physics/missing_frac"] == pytest.approx(1 / 3)
    assert found["enhance/intent_dropped/count"] + found["enhance/intent_contradicted/count"] > 0


def _rewrite(answer: Answer) -> Rewrite:
    sampled = SampledAnswer(prompt_ids=(1,), answer_ids=(2,), log_prob=(0.0,), is_finished=True)
    return Rewrite(text="", answer=answer, sampled=sampled)


def test_heldout_rewrites_say_what_was_lost_and_what_failed() -> None:
    wish = replace(BALL, facts={})
    found = rewrite_heldout(
        [wish, BOX],
        lambda prompts, seeds: [[_rewrite(OTHER)], [_rewrite(BAD)]],
        load_lexicon("english"),
        _recipe().prompt_enhancement,
    )
    assert found[0].to_json()["contradicted"] == ["colour red of ball"]
    assert found[1].prompt.enhanced_text is None, "as it was written, and not passed off as more"
    assert found[1].failure == "missing_tag"
    table = examples_table(found)
    assert "| crimson orb | a blue ball at night | colour red of ball |" in table
    assert "*malformed: missing_tag*" in table


def test_the_artifact_survives_the_move_of_its_run_and_old_runs_have_none(tmp_path: Path) -> None:
    phase = tmp_path / "run" / "phases" / "00_prompt_enhancement"
    phase.mkdir(parents=True)
    base = Policy(model_path="tiny")
    save_artifacts(phase, Artifacts(base_policy=base, policy=base, enhancer=str(phase / "e")))
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "phases" / "00_prompt_enhancement"
    found = load_artifacts(moved)
    assert found is not None
    assert found.enhancer == str(moved / "e")
    tree = json.loads((moved / "artifacts.json").read_text())
    del tree["enhancer"]
    (moved / "artifacts.json").write_text(json.dumps(tree))
    old = load_artifacts(moved)
    assert old is not None
    assert old.enhancer is None


def test_evaluation_takes_the_runs_enhancer_by_name() -> None:
    tree = {"name": "t", "phases": ["prompt_enhancement", "evaluate"]}
    recipe = Recipe.model_validate({**tree, "evaluate": {"enhance": "artifact"}})
    check_enhancer(recipe)
    found = with_artifacts(recipe, {}, {}, "/runs/e")
    assert found.evaluate.enhance == "/runs/e"
    assert with_artifacts(recipe, {}, {}).evaluate.enhance == "artifact"


@pytest.mark.parametrize(
    ("phases", "enhance", "message"),
    [
        (("evaluate",), "artifact", "made by no earlier phase"),
        (("evaluate", "prompt_enhancement"), "artifact", "made by no earlier phase"),
        (("evaluate",), "/nowhere", "no enhancer in '/nowhere'"),
    ],
)
def test_an_enhancer_that_is_not_there_in_time_is_refused(
    phases: tuple[str, ...], enhance: str, message: str
) -> None:
    recipe = Recipe.model_validate(
        {"name": "t", "phases": phases, "evaluate": {"enhance": enhance}}
    )
    with pytest.raises(ValueError, match=message):
        check_enhancer(recipe)


def test_a_served_rewriter_is_a_server_of_the_pool_that_takes_adapters(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    server = {"num_gpus": 1.0, "engine_args": {"gpu_memory_utilization": 0.4}}
    recipe = _recipe(
        rewriter={"dtype": "bfloat16"},
        sampler={"kind": "vllm", "server": server},
        learner={"lora": {"rank": 12}},
    )
    found = with_rewriter_server(recipe, str(tmp_path)).rewards.servers[SERVER]
    assert (found.model, found.dtype, found.num_gpus) == (str(tmp_path), "bfloat16", 1.0)
    assert found.engine_args["max_lora_rank"] == 16, "the next that vLLM has"
    assert found.engine_args["gpu_memory_utilization"] == 0.4
    assert found.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert with_rewriter_server(_recipe(), str(tmp_path)).rewards.servers == {}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"sampler": {"kind": "vllm"}, "learner": {"mode": "full"}},
            "expected learner.mode 'lora'",
        ),
        ({"sampler": {"server": {"model": "tiny"}}}, "server.model: the server is the phase's own"),
        ({"sampler": {"server": {"urls": ["http://a"]}}}, "server.urls: the server is the phase's"),
        ({"sampler": {"kind": "sglang"}}, "sampler.kind"),
    ],
)
def test_a_sampler_that_could_not_draw_from_the_learner_is_refused(
    section: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _recipe(**section)


def test_what_a_served_rewriter_would_start_in_vain_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    cold = {"num_steps": 0}
    served = {"kind": "vllm", "server": {"python": "/nowhere/python"}}
    section = {"rewriter": {"model": str(tmp_path)}, "sampler": served, "cold_start": cold}
    with pytest.raises(ValueError, match=r"sampler\.server\.python: cannot run '/nowhere/python'"):
        check_enhancement(_recipe(**section))
    rewards = RewardsConfig(servers={SERVER: ServerConfig()})
    taken = _recipe(**section).model_copy(update={"rewards": rewards})
    with pytest.raises(ValueError, match="'rewriter' is the server of prompt_enhancement"):
        check_enhancement(taken)


def test_the_server_of_a_rewriter_is_counted_with_its_ranks() -> None:
    phases = {"phases": ["prompt_enhancement"]}
    ranks = {"learner": {"num_cpus": 2.0}}
    served = {"sampler": {"kind": "vllm", "server": {"num_cpus": 3.0, "num_replicas": 2}}}
    without = Recipe.model_validate({"name": "t", **phases, "prompt_enhancement": ranks})
    beside = Recipe.model_validate({"name": "t", **phases, "prompt_enhancement": ranks | served})
    assert demanded(beside)["CPU"] - demanded(without)["CPU"] == 6.0
    roles = [role for role in learner_roles(beside) if role.role == "vLLM server: rewriter"]
    assert [(role.num_processes, role.phases) for role in roles] == [(2, ("prompt_enhancement",))]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"rewriter": {"model": "/nowhere"}}, "rewriter.model: no model in '/nowhere'"),
        ({"rewriter": {"template": "none"}}, "rewriter.template"),
        ({"reward": {"intent": {"lexicon": "none"}}}, "intent.lexicon"),
        ({"cold_start": {"pairs": "/nowhere.jsonl"}}, "cold_start.pairs: no such file"),
        ({"prompts": {"source": "nothing"}}, "prompts.source"),
    ],
)
def test_what_the_phase_would_look_for_in_vain_is_refused(
    tmp_path: Path, section: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    model = {"rewriter": {"model": str(tmp_path), **section.pop("rewriter", {})}}
    with pytest.raises(ValueError, match=message):
        check_enhancement(_recipe(**model, **section))
