import copy
import math
from functools import partial

import numpy as np
import pytest
import torch

from drgrade.encoders import create_encoder
from drgrade.errors import UserError
from drgrade.params import LocalToGlobal
from drgrade.pretrain import local_to_global
from drgrade.pretrain.base import METHODS, Material
from drgrade.pretrain.collapse import MIN_INFORMATION
from drgrade.pretrain.crops import MultiCrop
from drgrade.pretrain.local_to_global import (
    Network,
    SelfDistillation,
    cosine,
    learning_rates,
    vision_transformer,
)
from drgrade.seeding import seed_everything
from drgrade.tracking import NullRun
from drgrade.training import Batches, fit

TINY = {
    "encoder": "test_vit", "out_dim": 32, "global_size": 32, "local_size": 16, "local_crops": 2,
    "batch_size": 4, "epochs": 2, "warmup_epochs": 0.5, "lr": 0.01,
}  # fmt: skip


def tiny(**changes):
    return LocalToGlobal(**TINY | changes)


def material(count=8):
    """Discs of one colour, each with three spots of its own."""
    rng = np.random.default_rng(0)
    y, x = (np.mgrid[:40, :40] - 19.5) / 20
    disc = np.where((x**2 + y**2 <= 1)[..., None], np.array([170, 90, 50]), 0).astype(np.uint8)
    images = np.repeat(disc[None], count, axis=0)
    for image in images:
        for top, left in rng.integers(8, 28, (3, 2)):
            image[top : top + 5, left : left + 5] = rng.integers(0, 255, 3)
    return Material(images, np.arange(count), [np.zeros((0, 4))] * count, 32)


def distillation(params, learn_from=None):
    seed_everything(params.seed, "head")
    student = Network(vision_transformer(params, "random", params.drop_path), params)
    teacher = Network(vision_transformer(params, "random", 0.0), params)
    return SelfDistillation(student, teacher, learn_from or material(), params)


def train(module, run=None):
    params = module.params
    fit(
        module,
        name="t",
        epochs=params.epochs,
        seed=params.seed,
        key=[params.model_dump()],
        run=run or NullRun(),
        accumulate=params.accumulate,
    )


class Figures(NullRun):
    """Keeps what each epoch measured."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def metrics(self, values, step=0):
        assert step == len(self.epochs)
        self.epochs.append(values)


@pytest.mark.parametrize(("name", "at_224", "at_96"), [
    ("vit_small_patch8_224", 785, 145), ("vit_small_patch16_224", 197, 37), ("vit_base_patch8_224", 785, 145),
    ("vit_base_patch16_224", 197, 37),
])  # fmt: skip
def test_tokens_of_the_crops(name, at_224, at_96, monkeypatch):
    """Section 3.2; the paper's own table has the two patch sizes swapped (section 3.4)."""
    monkeypatch.setattr(local_to_global, "create_encoder", partial(create_encoder, depth=1))
    encoder = vision_transformer(LocalToGlobal(encoder=name), "random", 0.0)
    for size, tokens in ((224, at_224), (96, at_96)):
        assert encoder.forward_features(torch.zeros(1, 3, size, size)).shape[1] == tokens


def test_positions_are_interpolated_bicubically():
    encoder = vision_transformer(tiny(), "random", 0.0).eval()
    small = create_encoder("test_vit", "random", img_size=32, dynamic_img_size=False).eval()
    state = encoder.state_dict()
    first, grid = state["pos_embed"][:, :1], state["pos_embed"][:, 1:].reshape(1, 10, 10, 64)
    shrunk = torch.nn.functional.interpolate(
        grid.permute(0, 3, 1, 2), size=(2, 2), mode="bicubic", antialias=True
    )
    state["pos_embed"] = torch.cat([first, shrunk.flatten(2).permute(0, 2, 1)], dim=1)
    small.load_state_dict(state)
    crop = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(encoder(crop), small(crop), atol=1e-5)


def test_head_and_start_of_the_networks():
    module = distillation(tiny())
    head = module.student.head
    assert [tuple(layer.weight.shape) for layer in head.layers if isinstance(layer, torch.nn.Linear)] == [
        (2048, 64), (2048, 2048), (256, 2048),
    ]  # fmt: skip
    assert [type(layer) for layer in head.layers[1::2]] == [torch.nn.GELU] * 2
    assert head.last_layer.weight_v.shape == (32, 256)
    assert head.last_layer.bias is None
    assert head.last_layer.weight_g.requires_grad
    assert (head.last_layer.weight_g == 1).all()
    for one, two in zip(module.student.parameters(), module.teacher.parameters(), strict=True):
        assert torch.equal(one, two)
        assert not two.requires_grad
    drops = [
        [getattr(block.drop_path1, "drop_prob", 0.0) for block in network.encoder.blocks]
        for network in (module.student, module.teacher)
    ]
    assert drops[0] == pytest.approx(np.linspace(0, 0.1, 6))
    assert drops[1] == [0.0] * 6


def log_softmax(row):
    shifted = row - row.max()
    return shifted - np.log(np.exp(shifted).sum())


def test_the_loss_is_a_double_loop_over_views():
    """Section 3.2: all pairs of a teacher's view and another view of the student, 2 * 4 - 2 of them."""
    module = distillation(tiny(drop_path=0.0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a student that is no longer the teacher, and a centre
        for parameter in module.student.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        module.criterion.center.copy_(0.1 * torch.randn(1, 1, 32, generator=generator))
    centre = module.criterion.center[0, 0].double().numpy().copy()
    items = np.array([5, 2, 7])
    batch = module.prepare(items, 0)
    assert torch.equal(batch.photographs.permute(0, 2, 3, 1), torch.from_numpy(module.material.images[items]))
    crops = module.crops(*batch)
    shapes = []
    module.teacher.encoder.register_forward_pre_hook(lambda _, batch: shapes.append(tuple(batch[0].shape)))
    loss = module.training_step(batch, 0).item()
    assert shapes == [(2 * 3, 3, 32, 32)]  # the teacher is shown the two global views and nothing else
    with torch.no_grad():
        taught = [module.teacher([crop]).double().numpy() for crop in crops[:2]]
        said = [module.student([crop]).double().numpy() for crop in crops]
    total, pairs = 0.0, 0
    for teacher_view in range(2):
        for student_view in range(4):
            if teacher_view == student_view:
                continue
            pairs += 1
            for item in range(3):
                target = np.exp(log_softmax((taught[teacher_view][item] - centre) / 0.04))
                total -= target @ log_softmax(said[student_view][item] / 0.1) / 3
    assert pairs == 6
    assert loss == pytest.approx(total / 6, rel=1e-4)
    moved = 0.9 * centre + 0.1 * np.concatenate(taught).mean(axis=0)
    assert module.centres[0][0, 0].numpy() == pytest.approx(moved, abs=1e-6)
    assert module.criterion.center[0, 0].numpy() == pytest.approx(centre)  # until the step is whole


def test_half_precision_is_for_the_networks_alone():
    """Crops, softmax, loss and centre are float32 under autocast."""
    exact, mixed = (distillation(tiny(drop_path=0.0)) for _ in range(2))
    shown = []
    mixed.student.register_forward_pre_hook(lambda _, crops: shown.extend(crops[0]))
    exact.student.register_forward_pre_hook(lambda _, crops: shown.extend(crops[0]))
    loss = exact.training_step(exact.prepare(np.arange(4), 0), 0)
    with torch.autocast("cpu", torch.bfloat16):
        other = mixed.training_step(mixed.prepare(np.arange(4), 0), 0)
    assert all(torch.equal(one, two) for one, two in zip(shown[:4], shown[4:], strict=True))
    assert other.dtype == mixed.criterion.center.dtype == torch.float32
    assert other.item() == pytest.approx(loss.item(), rel=0.05)


def test_teacher_and_student_that_say_nothing_differ_by_log_k():
    module = distillation(tiny())
    with torch.no_grad():
        for network in (module.student, module.teacher):
            network.head.last_layer.weight_g.zero_()
    batch = module.prepare(np.arange(4), 0)
    assert module.training_step(batch, 0).item() == pytest.approx(math.log(32), rel=1e-6)


def test_schedules_of_the_paper():
    """Section 3.2: B = 20 on 35,126 photographs, 90 epochs of 1,756 steps, ten of them warm-up."""
    params = LocalToGlobal()
    steps = 35_126 // 20
    rates = learning_rates(params, steps)
    assert len(rates) == 90 * 1756
    assert rates[0] == 0
    assert rates[1] == pytest.approx(3.90625e-5 / (17_560 - 1))
    assert rates[17_559] == rates.max() == pytest.approx(3.90625e-5)
    assert rates[17_560] == pytest.approx(3.90625e-5)
    assert rates[-1] == 1e-6
    assert (np.diff(rates[:17_560]) > 0).all()
    assert (np.diff(rates[17_560:]) < 0).all()
    middle = 17_560 + (90 * 1756 - 17_560) // 2
    assert rates[middle] == pytest.approx((3.90625e-5 + 1e-6) / 2, rel=1e-3)


@pytest.mark.parametrize(("first", "last"), [(0.04, 0.4), (0.99, 1.0)])
def test_cosines_end_where_they_should(first, last):
    values = cosine(first, last, 101)
    assert len(values) == 101
    assert (values[0], values[-1]) == (pytest.approx(first, abs=1e-15), last)
    assert values[25] == pytest.approx(last + (first - last) * (1 + math.cos(math.pi / 4)) / 2)
    assert cosine(first, last, 1)[0] == pytest.approx(first)
    assert len(cosine(first, last, 0)) == 0


def test_no_warm_up_starts_at_the_peak_and_one_that_never_ends_is_refused():
    assert learning_rates(tiny(warmup_epochs=0), 5)[0] == pytest.approx(0.01 * 4 / 256)
    with pytest.raises(UserError, match="warmup_epochs: 2 of 2 epochs"):
        learning_rates(tiny(warmup_epochs=2), 5)


def test_gradients_are_clipped_one_parameter_at_a_time():
    module = distillation(tiny(clip=3.0))
    before = {}
    for number, (name, parameter) in enumerate(module.student.named_parameters()):
        direction = torch.ones_like(parameter)
        norm = 0.5 if number % 2 else 50.0
        parameter.grad = direction * (norm / direction.norm())
        before[name] = parameter.grad.clone()
    module.params = tiny(clip=3.0, freeze_last=0)
    module.student.head.freeze_last_layer = 0
    module.configure_gradient_clipping(None)
    for name, parameter in module.student.named_parameters():
        expected = before[name] * min(1.0, 3.0 / float(before[name].norm()))
        assert torch.allclose(parameter.grad, expected, rtol=1e-5), name
    module.student.head.freeze_last_layer = 1
    module.configure_gradient_clipping(None)
    frozen = [name for name, parameter in module.student.named_parameters() if parameter.grad is None]
    assert frozen == ["head.last_layer.weight_g", "head.last_layer.weight_v"]


def test_each_step_follows_the_schedules_and_the_teacher_the_student(tmp_path, monkeypatch):
    """Two epochs of two steps: rates and decay as used, the last layer still at first, the average exact."""
    monkeypatch.chdir(tmp_path)
    module = distillation(tiny(teacher_momentum=0.9))
    students, used, step = [], [], torch.optim.AdamW.step
    expected = [parameter.detach().double().clone() for parameter in module.teacher.parameters()]

    def recorded(optimizer, closure=None):
        loss = step(optimizer, closure)
        students.append([parameter.detach().cpu().clone() for parameter in module.student.parameters()])
        used.append([(group["lr"], group["weight_decay"]) for group in optimizer.param_groups])
        return loss

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    names = [name for name, _ in module.student.named_parameters()]
    start = copy.deepcopy(list(module.student.parameters()))
    train(module)
    assert len(students) == 4
    peak = 0.01 * 4 / 256
    rates = [0, peak, (peak + 1e-6) / 2, 1e-6]  # one step of warm-up, then half a cosine over three
    decays = [0.04 + 0.36 * (1 - math.cos(math.pi * number / 3)) / 2 for number in range(4)]
    assert [groups[0][0] for groups in used] == [groups[1][0] for groups in used]
    assert [groups[0][0] for groups in used] == pytest.approx(rates)
    assert [groups[0][1] for groups in used] == pytest.approx(decays)
    assert [groups[1][1] for groups in used] == [0.0] * 4
    momenta = [1 - 0.1 * (1 + math.cos(math.pi * number / 3)) / 2 for number in range(4)]
    for student, momentum in zip(students, momenta, strict=True):
        expected = [momentum * old + (1 - momentum) * new for old, new in zip(expected, student, strict=True)]
    for name, parameter, average in zip(names, module.teacher.parameters(), expected, strict=True):
        assert torch.allclose(parameter.double().cpu(), average, atol=1e-7), name
    for name, first, *later in zip(names, start, *students, strict=True):
        changed = [not torch.equal(first, value) for value in later]
        still = 2 if "last_layer" in name else 1  # the first step's rate is 0
        assert not any(changed[:still]), name
        assert changed[still] or name.endswith("qkv.bias"), name


def test_small_batches_add_up_to_the_steps_of_a_big_one(tmp_path, monkeypatch):
    """Student, teacher, centre, learning rate: all as with batches of four, three steps an epoch."""
    monkeypatch.chdir(tmp_path)
    states, rates = [], []
    for batch_size, accumulate in ((4, 1), (2, 2)):
        run = Figures()
        module = distillation(tiny(drop_path=0.0, batch_size=batch_size, accumulate=accumulate), material(12))
        start = {key: value.clone() for key, value in module.state_dict().items()}
        train(module, run)
        states.append(module.state_dict())
        rates.append([values["lr"] for values in run.epochs])
    assert rates[0] == rates[1]
    for key, value in states[0].items():
        moved = (value - start[key]).norm()
        assert (states[1][key] - value).norm() <= 1e-2 * moved + 1e-6, key
    assert (states[0]["criterion.center"] != 0).all()


def test_a_rest_of_batches_makes_a_step_of_its_own():
    """Seven photographs: three batches of two, so two steps an epoch."""
    module = distillation(tiny(batch_size=2, accumulate=2), material(7))
    assert len(module.rates) == len(module.decays) == len(module.momenta) == 4
    assert module.rates.max() == pytest.approx(0.01 * 4 / 256)


def test_decay_spares_biases_and_norms():
    module = distillation(tiny())
    decayed, spared = module.configure_optimizers().param_groups
    assert spared["weight_decay"] == 0
    names = {id(parameter): name for name, parameter in module.student.named_parameters()}
    assert {names[id(parameter)] for parameter in spared["params"]} == {
        name for name in names.values() if name.endswith(".bias") or "norm" in name
    }
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_killed_and_resumed_equals_undisturbed(tmp_path, monkeypatch):
    params = tiny(drop_path=0.3, batch_size=2, accumulate=2).model_dump()
    weights = []

    class KilledError(Exception):
        pass

    class Run(NullRun):
        def metrics(self, values, step=0):
            if step == stop:
                raise KilledError

    for folder, stops in (("undisturbed", [None]), ("resumed", [1, None])):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        for stop in stops:
            method = METHODS.get("local_to_global")(params)
            torch.manual_seed(len(weights))  # nothing may hang on what was drawn before
            if stop is None:
                weights.append(method.fit(material(), name="t", key="k", run=Run()).state_dict())
            else:
                with pytest.raises(KilledError):
                    method.fit(material(), name="t", key="k", run=Run())
                assert list((tmp_path / folder).rglob("last.ckpt"))
    for key, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][key]), key


def test_the_teachers_encoder_is_returned_and_serves_as_start_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params, run, modules = tiny(), Figures(), []
    monkeypatch.setattr(
        local_to_global, "fit", lambda module, **options: (modules.append(module), fit(module, **options))
    )
    encoder = METHODS.get("local_to_global")(params.model_dump()).fit(material(), name="t", key="k", run=run)
    assert encoder is modules[0].teacher.encoder
    torch.save(encoder.state_dict(), "teacher.pth")
    again = create_encoder("test_vit", "teacher.pth")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in encoder.state_dict().items())
    assert len(run.epochs) == 2
    assert run.epochs[-1].keys() >= {
        "loss", "lr", "teacher_entropy", "teacher_kl_uniform", "teacher_information", "feature_rank",
        "feature_sd", "feature_sd_min",
    }  # fmt: skip


def test_the_first_crops_are_kept_as_a_picture_once(tmp_path, monkeypatch):
    """Oracle: the crops before they are normalised, of the first photographs of the first epoch's order."""
    monkeypatch.chdir(tmp_path)
    shown, kept = [], []

    class Run(NullRun):
        def artifact(self, path, folder=None):
            kept.append((path.name, path.stat().st_size > 0))

    save = local_to_global.save_crops
    monkeypatch.setattr(
        local_to_global, "save_crops", lambda crops, path: shown.append(crops) or save(crops, path)
    )
    params, given = tiny(batch_size=5, epochs=2), material()
    train(distillation(params, given), Run())
    assert kept == [("crops.png", True)]
    rows = np.concatenate(Batches(8, 5, params.seed, 0).batches)[:4]
    plain = MultiCrop(params, [0.0] * 3, [1.0] * 3)
    photographs = torch.from_numpy(given.images[rows]).permute(0, 3, 1, 2)
    expected = plain(photographs, plain.plan(40, [np.zeros((0, 4))] * 4, rows, params.seed, 0))
    for crops, whole in zip(shown[0], expected, strict=True):
        assert torch.allclose(crops, whole, atol=1e-5)


def test_a_living_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Figures()
    train(distillation(tiny(epochs=3, lr=1e-3)), run)
    assert len(run.epochs) == 3
    assert all(values["teacher_information"] > 10 * MIN_INFORMATION for values in run.epochs)


@pytest.mark.parametrize(("changes", "kind"), [
    ({"lr": 1.0, "teacher_momentum": 0.5}, "one prototype"),
    ({"lr": 0.1, "teacher_momentum": 0.5, "teacher_temperature": 0.5}, "all prototypes alike"),
])  # fmt: skip
def test_a_run_that_dies_is_stopped(changes, kind, tmp_path, monkeypatch):
    """Steps far too long, and a teacher too vague to follow; both on what the living run learns from."""
    monkeypatch.chdir(tmp_path)
    run = Figures()
    with pytest.raises(UserError, match=rf"^pretrain.local_to_global: collapsed in epoch 2: .*{kind}"):
        train(distillation(tiny(epochs=10, **changes)), run)
    assert len(run.epochs) == 2  # measured and tracked before it is stopped
    assert run.epochs[1]["teacher_information"] < MIN_INFORMATION / 10


@pytest.mark.parametrize(("changes", "message"), [
    ({"encoder": "tf_efficientnet_lite0"}, "encoder: tf_efficientnet_lite0 is no vision transformer"),
    ({"local_size": 24}, "local_size: 24 is no multiple of the encoder's patch of 16 px"),
    ({"global_size": 40}, "global_size: 40 is no multiple"),
    ({"start": "nowhere.pth"}, "nowhere.pth: no such weights file"),
    ({"start": "imagenet"}, "test_vit.safetensors: no such file"),
    ({"warmup_epochs": 5}, "warmup_epochs: 5 of 2 epochs"),
])  # fmt: skip
def test_bad_params_are_named(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        METHODS.get("local_to_global")(tiny(**changes).model_dump()).fit(
            material(), name="t", key="k", run=NullRun()
        )


def test_both_encoders_are_compiled_on_demand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local_to_global, "fit", lambda module, **_: modules.append(module))
    for compiled in (False, True):
        modules, networks = [], []
        monkeypatch.setattr(
            torch, "compile", lambda call, dynamic, found=networks: found.append(call.__self__) or call
        )
        params = tiny(compile=compiled).model_dump()
        METHODS.get("local_to_global")(params).fit(material(), name="t", key="k", run=NullRun())
        assert networks == ([modules[0].student.encoder, modules[0].teacher.encoder] if compiled else [])


def test_start_weights_reach_student_and_teacher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seed_everything(5)
    start = create_encoder("test_vit", "random")
    torch.save(start.state_dict(), "start.pth")
    modules = []
    monkeypatch.setattr(local_to_global, "fit", lambda module, **_: modules.append(module))
    params = tiny(start="start.pth").model_dump()
    encoder = METHODS.get("local_to_global")(params).fit(material(), name="t", key="k", run=NullRun())
    for network in (encoder, modules[0].student.encoder):
        assert all(torch.equal(value, network.state_dict()[key]) for key, value in start.state_dict().items())


def test_preset_lesion_without_a_lesion_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local_to_global, "fit", lambda module, **_: None)
    method = METHODS.get("local_to_global")
    method(tiny(preset="lesion").model_dump()).fit(material(), name="t", key="k", run=NullRun())
    assert "no photograph has a lesion" in caplog.text
