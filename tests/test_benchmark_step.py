"""The step benchmark's arithmetic, tables and counting of memory on known numbers; nothing is timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks import step, step_contenders, step_plot, step_table
from benchmarks.step_contenders import Contender, Costs, Kept, Step, build_network

ROOT = Path(__file__).resolve().parent.parent
B0_PARAMETERS = 4_007_548 + 10 * 1281  # the paper's network without its classifier, and ten classes


def contender(rate: float, peak: float = 1e9, kept: float | None = 3.2e9) -> dict[str, Any]:
    rounds = [rate, rate * 1.1, rate * 0.9]
    spread = {"median": rate, "low": rate * 0.9, "high": rate * 1.1}
    return {"images_per_s": spread, "rounds": rounds, "share_of_ceiling": 0.5, "peak_bytes": peak, "kept_bytes": kept}


def shape(batch: int, size: int, **rates: dict[str, Any]) -> dict[str, Any]:
    names = {name.replace("__", ", "): figures for name, figures in rates.items()}
    return {"batch": batch, "size": size, "copy_bytes_per_s": 2e10, "contenders": names, "absent": {}}


def part(*shapes: dict[str, Any]) -> dict[str, Any]:
    versions = {"torch": "2.15", "torchvision": "0.29", "timm": "not installed"}
    machine = {"cores": 2, "date": "2026-01-01", "versions": versions}
    return {"machine": machine, "device": "some processor", "minutes": 1.0, "shapes": list(shapes)}


def test_ceiling_is_what_a_copy_of_all_that_is_moved_would_take() -> None:
    assert step_table.ceiling(4.3e12, 224, "gpu") == pytest.approx(14_381, abs=1)
    assert step_table.ceiling(4.3e12, 224, "cpu") == pytest.approx(14_381 / 2, abs=1)
    assert step_table.ceiling(4.3e12, 112, "gpu") == pytest.approx(4 * 14_381, abs=4)


def test_the_headline_is_the_shape_nearest_to_224_and_the_batch_of_the_targets() -> None:
    shapes = [shape(batch, size) for size in (128, 224) for batch in (8, 64, 256)]
    assert step_table.headline(part(*shapes), "gpu") is shapes[5]
    assert step_table.headline(part(*shapes), "cpu")["batch"] == 8  # 24 from 32, nearer than 64
    assert step_table.headline(part(shapes[1]), "cpu") is shapes[1]


def test_table_says_what_was_not_measured_and_why() -> None:
    cpu = shape(32, 224, ours__off=contender(30, 1.5e9, 64e6), torchvision__best=contender(123, kept=None))
    cpu["absent"] = {"timm, best": "not installed"}
    lines = step_table.step_table({"cpu": part(cpu)}).splitlines()
    assert "| ours, off | 30.0 (27.0-33.0) | 1.50 | 2.0 | 50% | not measured |" in lines
    assert "| torchvision, best | 123 (111-135) | 1.00 | - | 50% | not measured |" in lines
    assert "| timm, best | not installed | - | - | - | not measured |" in lines
    assert step_table.step_table({}) == "Not measured yet."


def test_table_of_both_devices_has_a_row_for_whom_only_one_of_them_knows() -> None:
    gpu = part(shape(32, 224, ours__x=contender(5e3)), shape(256, 224, ours__x=contender(9e3)))
    lines = step_table.step_table({"cpu": part(shape(32, 224, ours__off=contender(30))), "gpu": gpu}).splitlines()
    assert "| ours, off | 30.0 (27.0-33.0) | 1.00 | 100.0 | 50% | - | - | - | - |" in lines
    assert "| ours, x | - | - | - | - | 9,000 (8,100-9,900) | 1.00 | 12.5 | 50% |" in lines
    assert "| median images/s | CPU 224 px, batch 32 | GPU 224 px, batch 32 | GPU 224 px, batch 256 |" in lines
    assert "| ours, x | - | 5,000 | 9,000 |" in lines


def test_targets_take_our_fastest_that_trains_all_and_the_faster_rival() -> None:
    figures = shape(
        32,
        224,
        ours__off=contender(30),
        **{"ours__fine-tuning": contender(60)},
        ours__activations=contender(28.2, peak=0.6e9, kept=1.6e9),
        torchvision__best=contender(20, peak=1e9, kept=3.2e9),
        timm__best=contender(25),
        timm__defaults=contender(10),
    )
    lines = [line for _, line in step_table.verdicts("cpu", part(figures))]
    assert lines == [
        "speed of ours, off to timm, best: target >= 1.3x: 1.20x missed",
        "speed of ours, off to timm, defaults: target >= 2.2x: 3.00x ok",
        "speed of ours, activations to ours, off: target >= 0.95x: 0.94x missed",
        "kept for backward of ours, activations to torchvision, best: target <= 55%: 50.00% ok",
        "peak memory of ours, activations to torchvision, best: target <= 55%: 60.00% missed",
    ]


def test_a_gpu_is_judged_at_every_batch_of_the_headline_size() -> None:
    def figures(batch: int, size: int) -> dict[str, Any]:
        return shape(batch, size, ours__kernels=contender(12_000), timm__best=contender(6_000))

    shapes = [figures(32, 224), figures(256, 224), figures(256, 128)]
    judged = [(each["size"], each["batch"], line) for each, line in step_table.verdicts("gpu", part(*shapes))]
    fast = "speed of ours, kernels to timm, best: target >= 1.5x: 2.00x ok"
    most = "speed of ours, kernels: target >= 10000 images/s: 12000.00 images/s ok"
    assert judged == [(224, 32, fast), (224, 256, fast), (224, 256, most)]


def test_a_run_replaces_its_own_device_and_shape_only(tmp_path: Path) -> None:
    file = tmp_path / "results" / "step.json"
    step.save(file, "gpu", part(shape(256, 224)))
    step.save(file, "cpu", part(shape(32, 224)))
    step.save(file, "cpu", part(shape(8, 128)))
    assert [each["batch"] for each in step.load(file)["cpu"]["shapes"]] == [8]
    assert [each["batch"] for each in step.load(file)["gpu"]["shapes"]] == [256]
    known = [shape(8, 224), shape(32, 224), shape(8, 128)]
    fresh = shape(8, 224, ours__off=contender(1))
    assert step.merged(known, fresh) == [fresh, known[1], known[2]]


def test_the_table_goes_between_the_marks() -> None:
    text = f"before\n{step.START}\nold\n{step.END}\nafter\n"
    assert step.between_marks(text, "| new |") == f"before\n{step.START}\n| new |\n{step.END}\nafter\n"
    with pytest.raises(AssertionError, match="missing"):
        step.between_marks("no marks", "| new |")


def test_readme_shows_the_results_file() -> None:
    text = step.README.read_text(encoding="utf-8")
    assert step.between_marks(text, step_table.step_table(step.load(step.RESULTS))) == text


def test_command_line_prints_the_table_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "step.json"
    file.write_text(json.dumps({"cpu": part(shape(32, 224, ours__off=contender(30)))}), encoding="utf-8")
    step.main(["--table", "--output", str(file)])
    assert "| ours, off | 30.0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        step.main(["--rounds", "0"])
    assert "0 measures nothing" in capsys.readouterr().err


def test_a_row_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        step.refuse_unknown(["timm, best", "tim"], "cpu")
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "'tim'" in said and "timm, best" in said
    step.refuse_unknown(["ours", "timm, best"], "cpu")


def test_plot_has_a_row_for_each_device(tmp_path: Path) -> None:
    cpu = part(shape(32, 224, ours__off=contender(30), timm__best=contender(20)))
    for name, results in (("one.png", {"cpu": cpu}), ("two.png", {"cpu": cpu, "gpu": cpu})):
        step_plot.plot_step(results, tmp_path / name)
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert one.width == two.width and two.height > 1.5 * one.height


@pytest.mark.parametrize("package", ["effnet_lit", "torchvision", "timm"])
def test_all_train_the_same_network(package: str) -> None:
    pytest.importorskip(package)
    network = build_network(Contender("any", package), 32)
    assert sum(parameter.numel() for parameter in network.parameters()) == B0_PARAMETERS
    rates = [getattr(module, "p", getattr(module, "drop_prob", None)) for module in network.modules()]
    assert max(rate for rate in rates if rate is not None and rate != 0.2) == pytest.approx(0.2 * 15 / 16)


def test_every_contender_can_be_chosen_and_is_named_once() -> None:
    for device in ("cpu", "gpu"):
        found = step_contenders.contenders(device)
        assert {step.group(each) for each in found} == set(step.ONLY)
        assert len({each.name for each in found}) == len(found)
        assert any(each.compiled for each in found) == (device == "gpu")
        assert any(each.keeps_freed_memory for each in found) == (device == "cpu")


def test_a_step_trains_and_leaves_no_gradients() -> None:
    steps = Step(Contender("any", "torchvision", "mobilenet_v3_small"), "cpu", 2, 32)
    before = [parameter.detach().clone() for parameter in steps.network.parameters()]
    steps.run(1)
    assert not any(map(torch.equal, before, steps.network.parameters()))
    assert all(parameter.grad is None for parameter in steps.network.parameters())
    assert step_contenders.kept_bytes(steps) > 0
    assert all(parameter.grad is None for parameter in steps.network.parameters())


def test_kept_are_new_storages_that_are_still_held() -> None:
    x, linear = torch.randn(8, 16), nn.Linear(16, 32)
    with Kept() as kept:
        hidden = linear(x)  # 8 x 32, no gradient needs it
        y = hidden.sigmoid()  # 8 x 32: kept for its gradient
        view = y.view(-1)[2:]  # the same storage
        del hidden
        assert kept.held() == 8 * 32 * 4
        del y, view
        assert kept.held() == 0
        linear.weight.detach().mul_(2.0)
        assert kept.held() == 0


def test_kept_sees_what_checkpointing_holds() -> None:
    layers = nn.Sequential(nn.Linear(16, 64), nn.Sigmoid(), nn.Linear(64, 16))
    x = torch.randn(8, 16)
    with Kept() as kept:
        between = torch.sigmoid(layers[0].weight.new_ones(8, 16) * x)
        y = checkpoint(layers, between, use_reentrant=False)
        total = y.sum()
        del between, y
        held = kept.held()
    assert 8 * 16 * 4 <= held < 8 * 64 * 4  # the input, not the hidden layer
    total.backward()


def test_kept_of_a_step_whose_blocks_are_computed_again_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effnet_lit.model.cpu.suits.SMALLEST_BYTES", 0)
    off, blocks = (
        step_contenders.kept_bytes(Step(Contender("ours", "effnet_lit", checkpointing=mode), "cpu", 4, 64))
        for mode in ("off", "blocks")
    )
    assert 0 < blocks < 0.7 * off


def test_a_failure_is_told_as_text_that_survives_the_way_between_processes() -> None:
    with pytest.raises(RuntimeError, match=r"^ValueError: .*no_such_model"):
        step_contenders.build(Contender("any", "torchvision", "no_such_model"), "cpu", 1, 32)


def test_figures_hold_a_share_for_b0_only() -> None:
    costs = Costs(10, None, 2)
    b0, resnet = Contender("ours, off", "effnet_lit"), Contender("ResNet-50", "torchvision", "resnet50")
    assert step.figures([40.0, 50.0, 60.0], costs, 100.0, b0)["share_of_ceiling"] == 0.5
    assert step.figures([40.0, 50.0, 60.0], costs, 100.0, resnet)["share_of_ceiling"] is None


def test_measuring_needs_neither_hydra_nor_lightning() -> None:
    code = (
        "import sys, benchmarks.step as s, benchmarks.step_contenders as c\n"
        "c.prepare(c.contenders('cpu')[0], 'cpu')\n"
        "c.build_network(c.contenders('gpu')[1], 32)\n"
        "print(*sorted({'hydra', 'omegaconf', 'lightning', 'wandb', 'torchmetrics'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
