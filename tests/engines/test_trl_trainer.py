"""The TRL trainer against TRL's real tool loop, masks and losses, with a scripted sampler.

Locked here: one ΔH a round however many parallel calls; unanswered and unparsed calls count; truncated completions;
`outcome` is bit-identical to stock GRPO; logged metrics, traces and `deltah.score` agree; dense advantages stand on the
tokens that issued the call; entropies equal those of the full softmax at the sampling temperature.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl")
import torch
from builders import make_trajectory
from engines.trl_fixtures import call, make_trainer, outcome, tiny_model
from trl import GRPOTrainer

from deltah import Group, RewardConfig, SegmentKind, Trajectory, Verdict, entropy_from_logits, score, sparse_reward
from deltah.core import metrics
from deltah.core.advantages import token_advantages
from deltah.core.rewards import normalise, shuffle_verdicts
from deltah.core.types import CallStatus, StopReason
from deltah.errors import InvalidValueError, UnsupportedVersionError

END = "<|end|>"
CALLS = [
    [f" Is it north {call('a')}{END}", f" maybe so {call('b')}{END}", f" Yes{END}"],
    [f" Is it south {call('c')}{END}", f" No{END}"],
    [f" Is it here {call('d')}{call('e')}{END}", f" Yes{END}"],
    [f" maybe{END}"],
]


class Recorder:
    """Collects what the trainer hands out after each batch."""

    def __init__(self) -> None:
        self.trajectories: list[Trajectory] = []
        self.step = 0

    def __call__(self, trajectories: Any, signals: Any, step: int, mode: str) -> None:
        self.trajectories, self.signals, self.step = trajectories, signals, step


def run(tmp_path: Path, scripts: Any = CALLS, **options: Any) -> tuple[Any, Recorder]:
    recorder = Recorder()
    trainer = make_trainer(tmp_path, scripts, on_trajectories=recorder, **options)
    trainer.train()
    return trainer, recorder


def test_rounds_calls_and_segments_come_from_the_real_loop(tmp_path: Path) -> None:
    _, recorder = run(tmp_path)
    t = recorder.trajectories
    assert [len(x.rounds) for x in t] == [2, 1, 1, 0]
    assert [x.n_calls for x in t] == [2, 1, 2, 0]
    assert [x.outcome for x in t] == [1.0, 0.0, 1.0, 0.5]
    assert all(c.status is CallStatus.OK for x in t for c in x.calls)
    assert [c.result.strip() for c in t[2].calls] == ["Port d", "Port e"]
    assert {x.stop_reason for x in t} == {StopReason.ANSWERED}
    for x in t:
        texts = np.array(x.token_texts)
        assert not any("tool_call" in s for s in texts[x.mask([SegmentKind.REASONING])])
        assert "".join(texts[x.mask([SegmentKind.CALL])]).count("<tool_call>") == x.n_calls
        assert all("Port" not in s for s in texts[x.response_mask])


def test_entropies_are_those_of_the_full_softmax(tmp_path: Path) -> None:
    model, tokenizer = tiny_model()
    _, recorder = run(tmp_path, model=(model, tokenizer), grpo={"temperature": 0.7, "learning_rate": 0.0})
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Where is it ?"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    for t in recorder.trajectories:
        ids = torch.tensor([[*prompt, *t.token_ids.tolist()]])
        with torch.no_grad():
            hidden = model.model(ids).last_hidden_state
            logits = model.lm_head(hidden)[0, len(prompt) - 1 : -1]
        expected = entropy_from_logits(logits.numpy(), temperature=0.7)
        np.testing.assert_allclose(t.entropy[t.response_mask], expected[t.response_mask], atol=1e-5)
        assert np.isnan(t.entropy[~t.response_mask]).all()
        assert t.temperature == 0.7


def test_parallel_calls_share_one_delta_h(tmp_path: Path) -> None:
    _, recorder = run(tmp_path)
    signal = recorder.signals[2]
    assert signal.n_rounds == 1
    assert signal.n_calls == 2
    assert signal.call_value[0] == signal.call_value[1]


def test_call_cut_by_the_round_limit_is_unanswered(tmp_path: Path) -> None:
    _, recorder = run(tmp_path, grpo={"max_tool_calling_iterations": 1})
    t = recorder.trajectories[0]
    assert [c.status for c in t.calls] == [CallStatus.OK, CallStatus.UNANSWERED]
    assert t.stop_reason is StopReason.UNANSWERED_CALL
    signal = score(t)
    assert signal.verdicts[1] is Verdict.UNDEFINED
    assert signal.n_calls == 2


def test_result_that_overflows_the_budget_leaves_an_unanswered_call(tmp_path: Path) -> None:
    _, recorder = run(tmp_path, grpo={"max_completion_length": 16})
    assert any(t.stop_reason is StopReason.UNANSWERED_CALL for t in recorder.trajectories)


def test_unparsable_call_counts_as_an_unanswered_call(tmp_path: Path) -> None:
    broken = f' it is <tool_call>{{"name": "search", "arguments": {{"query": "a</tool_call>{END}'
    _, recorder = run(tmp_path, scripts=[[broken], *CALLS[1:]])
    t = recorder.trajectories[0]
    assert [(c.name, c.status) for c in t.calls] == [("", CallStatus.UNANSWERED)]


def test_failing_and_unknown_tools_are_errors_and_counted(tmp_path: Path) -> None:
    scripts = [[f" it {call('boom')}{END}", f" Yes{END}"], [f" it {call('x', name='fly')}{END}", f" No{END}"]]
    _, recorder = run(tmp_path, scripts=scripts)
    assert [t.calls[0].status for t in recorder.trajectories] == [CallStatus.ERROR] * 2
    assert [score(t).n_calls for t in recorder.trajectories] == [1, 1]


def test_truncated_answer_is_marked(tmp_path: Path) -> None:
    _, recorder = run(tmp_path, scripts=[[" Yes it is"], [f" No{END}"]])
    assert [t.stop_reason for t in recorder.trajectories] == [StopReason.LENGTH, StopReason.ANSWERED]


def test_logged_metrics_traces_and_score_agree(tmp_path: Path) -> None:
    trainer, recorder = run(tmp_path)
    logged = next(row for row in trainer.state.log_history if metrics.CALLS in row)
    expected = metrics.batch_metrics(
        [score(t) for t in recorder.trajectories], np.array([t.outcome for t in recorder.trajectories])
    )
    for key, value in expected.items():
        assert logged[key] == pytest.approx(value, abs=1e-6), key
    assert logged[metrics.CALLS] == pytest.approx(logged["tools/call_frequency"])


def captured_batch(trainer: Any) -> dict[str, torch.Tensor]:
    """Train; what the loss is given."""
    captured: dict[str, torch.Tensor] = {}
    original = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: captured.update(inputs) or original(model, inputs)
    trainer.train()
    return captured


def group_of(recorder: Recorder, signals: Any = None) -> Group:
    return Group(
        trajectories=recorder.trajectories,
        signals=signals or recorder.signals,
        outcomes=np.array([t.outcome for t in recorder.trajectories]),
    )


def one_number(advantages: Any) -> list[float]:
    """The one advantage of each row, sorted: the host deals rows out in an order of its own."""
    return sorted(float(row[np.abs(row).argmax()]) for row in advantages)


@pytest.mark.parametrize("name", ["sparse", "penalty", "otc"])
def test_scalar_rewards_reach_trl_and_its_advantages_are_ours(tmp_path: Path, name: str) -> None:
    config = RewardConfig(name=name)
    trainer = make_trainer(tmp_path, CALLS, reward=config, on_trajectories=(recorder := Recorder()))
    got = captured_batch(trainer)["advantages"]
    expected = one_number(token_advantages(group_of(recorder), config))
    np.testing.assert_allclose(sorted(got.tolist()), expected, atol=1e-5)


@pytest.mark.parametrize(("seed", "steps"), [(3, 1), (3, 2), (4, 1)])
def test_the_shuffled_arm_trains_on_verdicts_shuffled_by_seed_and_step(tmp_path: Path, seed: int, steps: int) -> None:
    reward, recorder = RewardConfig(name="shuffled"), Recorder()
    grpo = {"seed": seed, "max_steps": steps}
    trainer = make_trainer(tmp_path, CALLS, reward=reward, on_trajectories=recorder, grpo=grpo)
    got = captured_batch(trainer)["advantages"]
    shuffled = shuffle_verdicts(recorder.signals, np.random.default_rng([seed, steps - 1]))
    expected = one_number(token_advantages(group_of(recorder, shuffled), RewardConfig(name="sparse")))
    np.testing.assert_allclose(sorted(got.tolist()), expected, atol=1e-5)


@pytest.mark.parametrize(
    "config", [RewardConfig(name="dense"), RewardConfig(name="sparse", correctness_first=True)], ids=["dense", "first"]
)
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "bnpo"])
def test_token_advantages_reach_the_loss(tmp_path: Path, config: RewardConfig, loss_type: str) -> None:
    captured: dict[str, torch.Tensor] = {}
    trainer = make_trainer(
        tmp_path, CALLS, reward=config, on_trajectories=(recorder := Recorder()), grpo={"loss_type": loss_type}
    )
    before = [p.detach().clone() for p in trainer.model.parameters()]
    original = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: captured.update(inputs) or original(model, inputs)
    trainer.train()
    group = Group(
        trajectories=recorder.trajectories,
        signals=recorder.signals,
        outcomes=np.array([t.outcome for t in recorder.trajectories]),
    )
    tokens = token_advantages(group, config)
    by_ids = {tuple(t.token_ids.tolist()): a for t, a in zip(recorder.trajectories, tokens, strict=True)}
    assert captured["advantages"].shape == captured["completion_ids"].shape
    rows = [captured[key] for key in ("completion_ids", "completion_mask", "advantages")]
    for ids, mask, row in zip(*rows, strict=True):
        n = int(mask.sum())
        np.testing.assert_allclose(row[:n].numpy(), by_ids[tuple(ids[:n].tolist())], atol=1e-5)
        assert not row[n:].any()
    assert any((a != b).any() for a, b in zip(before, trainer.model.parameters(), strict=True))


def weights_after(tmp_path: Path, trainer_class: type, **options: Any) -> list[torch.Tensor]:
    """Weights after two real steps with real sampling."""
    torch.manual_seed(0)
    grpo = {"max_steps": 2, "max_completion_length": 24, "loss_type": "grpo", **options.pop("grpo", {})}
    rewards = lambda completions, **kw: [len(str(c)) % 7 / 7 for c in completions]  # noqa: E731
    trainer = make_trainer(tmp_path, None, trainer_class=trainer_class, reward_funcs=rewards, grpo=grpo, **options)
    trainer.train()
    return [p.detach().clone() for p in trainer.model.parameters()]


@pytest.mark.parametrize(
    "grpo",
    [{}, {"num_iterations": 2}, {"beta": 0.1}, {"beta": 0.1, "num_iterations": 2}],
    ids=["on-policy", "iterations", "kl", "kl-iterations"],
)
def test_outcome_is_bit_identical_to_stock_grpo(tmp_path: Path, grpo: dict[str, Any]) -> None:
    from deltah.engines.trl.trainer import DeltaHTrainer

    stock = weights_after(tmp_path / "a", GRPOTrainer, grpo=grpo)
    ours = weights_after(tmp_path / "b", DeltaHTrainer, reward=RewardConfig(name="outcome"), grpo=grpo)
    assert all(torch.equal(a, b) for a, b in zip(stock, ours, strict=True))


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_captured_entropies_equal_those_of_an_own_pass(tmp_path: Path, beta: float) -> None:
    """With num_iterations > 1 TRL's old-logprob pass is reused; a reference pass (beta > 0) is not mistaken for it."""
    _, own = run(tmp_path / "a", grpo={"beta": beta, "learning_rate": 0.0})
    trainer, captured = run(tmp_path / "b", grpo={"beta": beta, "num_iterations": 2, "learning_rate": 0.0})
    assert trainer._has_old_logprob_pass()
    for a, b in zip(own.trajectories, captured.trajectories, strict=True):
        np.testing.assert_allclose(a.entropy[a.response_mask], b.entropy[b.response_mask], atol=1e-5)


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_peft_with_kl_measures_the_policy_not_the_reference(tmp_path: Path, num_iterations: int) -> None:
    peft = pytest.importorskip("peft")
    model, tokenizer = tiny_model()
    lora = peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    trainer, recorder = run(
        tmp_path,
        model=(model, tokenizer),
        peft_config=lora,
        reward=RewardConfig(name="dense"),
        grpo={"beta": 0.1, "num_iterations": num_iterations, "learning_rate": 0.0},
    )
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Where is it ?"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    t = recorder.trajectories[0]
    ids = torch.tensor([[*prompt, *t.token_ids.tolist()]])
    base = trainer.model.get_base_model()
    with torch.no_grad():
        policy = base.lm_head(base.model(ids).last_hidden_state)[0, len(prompt) - 1 : -1]
        with trainer.model.disable_adapter():
            reference = base.lm_head(base.model(ids).last_hidden_state)[0, len(prompt) - 1 : -1]
    mask = t.response_mask
    np.testing.assert_allclose(t.entropy[mask], entropy_from_logits(policy.numpy())[mask], atol=1e-4)
    assert np.abs(t.entropy[mask] - entropy_from_logits(reference.numpy())[mask]).max() > 1e-2


@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_a_second_reward_function_is_added_not_shaped(tmp_path: Path, name: str) -> None:
    """Dense: weight x our tokens + the group advantage of 2 x the second. Sparse: one group advantage of the sum."""

    def brevity(completions: list[Any], **kw: Any) -> list[float]:
        return [float(-len(c)) for c in completions]

    config, recorder = RewardConfig(name=name), Recorder()
    trainer = make_trainer(
        tmp_path,
        CALLS,
        reward=config,
        reward_funcs=[outcome, brevity],
        grpo={"reward_weights": [0.5, 2.0]},
        on_trajectories=recorder,
    )
    batch = captured_batch(trainer)
    group, short = group_of(recorder), 2.0 * np.array([-5.0, -3.0, -4.0, -1.0])  # messages of CALLS, results included
    if name == "sparse":
        totals = 0.5 * np.array([sparse_reward(s, o) for s, o in zip(group.signals, group.outcomes, strict=True)])
        expected = sorted(normalise(totals + short, scale=True, eps=config.eps))
        np.testing.assert_allclose(sorted(batch["advantages"].tolist()), expected, atol=1e-5)
        return
    others = normalise(short, scale=True, eps=config.eps)
    ours = token_advantages(group, config)
    by_ids = {
        tuple(t.token_ids.tolist()): 0.5 * a + other * t.response_mask
        for t, a, other in zip(group.trajectories, ours, others, strict=True)
    }
    rows = [batch[key] for key in ("completion_ids", "completion_mask", "advantages")]
    for ids, mask, row in zip(*rows, strict=True):
        n = int(mask.sum())
        np.testing.assert_allclose(row[:n].numpy(), by_ids[tuple(ids[:n].tolist())], atol=1e-5)


@pytest.mark.parametrize("num_iterations", [1, 2])
@pytest.mark.parametrize("kind", ["a rate in the layer", "a module"])
def test_entropies_are_measured_without_dropout(tmp_path: Path, num_iterations: int, kind: str) -> None:
    """The policy acted without it; the pass that TRL runs for several iterations has it on and is not reused then."""
    model, tokenizer = tiny_model()
    if kind == "a module":
        model.model.layers[0].mlp.act_fn = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Dropout(0.5))
    else:
        model.model.layers[0].self_attn.attention_dropout = 0.5
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path,
        CALLS,
        model=(model, tokenizer),
        on_trajectories=recorder,
        grpo={"num_iterations": num_iterations, "learning_rate": 0.0},
    )
    trainer.train()
    assert trainer.model.training
    prompt = prompt_ids(tokenizer)
    model.eval()
    for t in recorder.trajectories:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *t.token_ids.tolist()]])).logits[0, len(prompt) - 1 : -1]
        expected = entropy_from_logits(logits.numpy())
        np.testing.assert_allclose(t.entropy[t.response_mask], expected[t.response_mask], atol=1e-5)


def prompt_ids(tokenizer: Any) -> list[int]:
    messages = [{"role": "user", "content": "Where is it ?"}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def test_outcomes_outside_the_unit_interval_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, CALLS, reward_funcs=lambda completions, **kw: [2.0] * len(completions))
    with pytest.raises(InvalidValueError, match=r"must return scores in \[0, 1\]; got values from 2 to 2"):
        trainer.train()


def test_changed_trl_is_refused_with_the_supported_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("deltah.engines.trl.trl_compat.metadata.version", lambda name: "2.1.0")
    with pytest.raises(UnsupportedVersionError, match=r"version 2\.1\.0 is outside .*tested with TRL 1\.16"):
        make_trainer(tmp_path, CALLS)


def test_collapse_alarm_is_logged_in_training_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alarm = "deltah alarm at step 1: "

    def alarms(mode_is_train: bool) -> str:
        trainer = make_trainer(tmp_path, CALLS)
        trainer.model.train(mode_is_train)
        good = {metrics.CALLS: 3.0, metrics.OUTCOME: 0.6, metrics.SIGNAL_STD: 0.5}
        for _ in range(10):
            trainer._monitor.update(good)
        caplog.clear()
        for _ in range(10):  # no calls, and wrong
            trainer._record_metrics([score(make_trajectory([[1.0]]))], np.zeros(1))
        return caplog.text

    with caplog.at_level(logging.WARNING):
        assert "dropping its tools" in alarms(True)
        assert alarm in caplog.text
        assert alarm not in alarms(False)
