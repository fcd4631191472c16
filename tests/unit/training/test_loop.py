"""The training loop on a two-parameter problem: schedule, exact resume, logs."""

import csv

import pytest
import torch

from moevision.errors import UsageError
from moevision.training.curves import draw_curves
from moevision.training.loop import LoopConfig, fit, learning_rate_at


def run(out, steps, *, resume=False, stop_at=None, plateau=0.0):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)

    def losses_of(net, step):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 3)  # drawn from the seed that the loop sets for this step
        return {"mse": (net(x) - x.sum(1, keepdim=True)).square().mean()}

    config = LoopConfig(
        steps, learning_rate=0.05, warmup_steps=5, plateau=plateau,
        checkpoint_every=10, validate_every=20, log_every=10,
    )  # fmt: skip
    lines = []
    average = fit(
        model, losses_of, config, out, resume=resume, say=lines.append,
        validate=lambda net, step: {"distance": (net.weight - 1).abs().max().item()},
    )  # fmt: skip
    return average, lines


def test_an_interrupted_run_resumes_to_the_same_weights_bit_for_bit(tmp_path):
    unbroken, _ = run(tmp_path / "a", 40)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", 40, stop_at=27)
    resumed, _ = run(tmp_path / "b", 40, resume=True)
    for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_learns_and_writes_progress_log_validation_and_curves(tmp_path):
    average, lines = run(tmp_path / "run", 100)
    assert float((average.weight - 1).abs().max()) < 0.2
    assert any("ETA" in line and "mse" in line for line in lines)
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(10, 101, 10))
    assert float(rows[-1]["mse"]) < float(rows[0]["mse"])
    assert len((tmp_path / "run" / "validation.csv").read_text().splitlines()) == 6
    curves = draw_curves(tmp_path / "run")
    assert curves is None or curves.stat().st_size > 1000


def test_a_folder_that_holds_a_run_is_not_overwritten_and_an_empty_one_not_resumed(tmp_path):
    run(tmp_path / "run", 10)
    with pytest.raises(UsageError, match="--resume"):
        run(tmp_path / "run", 10)
    with pytest.raises(UsageError, match="no run to resume"):
        run(tmp_path / "empty", 10, resume=True)


def test_a_run_of_another_network_or_with_other_rates_is_not_resumed(tmp_path):
    run(tmp_path / "run", 10)
    config = LoopConfig(20)
    for model, rates in ((torch.nn.Linear(4, 1), {}), (torch.nn.Linear(3, 1), {"weight": 0.5})):
        with pytest.raises(UsageError, match=r"checkpoint\.pt: of a run with another network or recipe"):
            fit(model, lambda net, step: {}, config, tmp_path / "run", rates=rates, resume=True)


def test_the_learning_rate_warms_up_then_falls_to_its_end():
    config = LoopConfig(1000, learning_rate=1.0, final_learning_rate=0.0, warmup_steps=100)
    rates = [learning_rate_at(step, config) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[99] == pytest.approx(1.0)
    assert rates[549] == pytest.approx(0.5, abs=0.01)
    assert rates[-1] < 1e-4


def test_the_learning_rate_stays_at_its_peak_on_the_plateau_and_cools_down_after_it():
    config = LoopConfig(1000, learning_rate=1.0, final_learning_rate=0.0, warmup_steps=100, plateau=0.6)
    rates = [learning_rate_at(step, config) for step in range(1000)]
    assert rates[99:601] == [1.0] * 502
    assert rates[800] == pytest.approx(0.5, abs=0.01)
    assert rates[-1] < 1e-4


def test_a_longer_run_goes_on_from_the_plateau_as_if_it_had_never_cooled_down(tmp_path):
    short, long = {"plateau": 0.5}, {"plateau": 0.75}
    run(tmp_path / "short", 40, **short)  # plateau ends at step 20
    (tmp_path / "longer").mkdir()
    (tmp_path / "short" / "plateau.pt").rename(tmp_path / "longer" / "checkpoint.pt")
    continued, _ = run(tmp_path / "longer", 80, resume=True, **long)
    unbroken, _ = run(tmp_path / "unbroken", 80, **long)
    for a, b in zip(continued.parameters(), unbroken.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_stops_the_run_with_a_remedy(tmp_path):
    with pytest.raises(UsageError, match="lower the learning rate"):
        fit(
            torch.nn.Linear(1, 1),
            lambda net, step: {"bad": net(torch.ones(1, 1)).sum() * torch.nan},
            LoopConfig(3),
            tmp_path / "run",
        )
