"""Pseudo masks of graded photographs, and the teacher that draws them."""

from copy import deepcopy

import torch
from tests.grading.deepmt_examples import SIDE, settings

from drgrade.grading.deepmt_network import new_network
from drgrade.grading.deepmt_pseudo_masks import follow, pseudo_masks


def test_healthy_eyes_get_empty_pseudo_masks():
    torch.manual_seed(0)
    network = new_network(settings(), "random").eval()
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    masks = pseudo_masks(network, images, torch.tensor([0, 1, 4]), 0.5)
    assert not masks[0].any()
    assert 0 < masks[1:].mean() < 1
    assert masks.shape == (3, SIDE, SIDE)
    assert set(masks.unique().tolist()) == {0, 1}
    evidence = network.evidence_of(images, network.encoder.lesions_in_parts(images))
    assert 4 * evidence.shape[-1] == SIDE
    # the enlarged map is above the threshold at the maximum, and below it where all neighbours are
    for one, mask in zip(evidence[1:], masks[1:], strict=True):
        row, column = divmod(int(one.argmax()), one.shape[1])
        assert mask[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].any()
        low = torch.nn.functional.max_pool2d(one[None, None], 3, 1, 1)[0, 0] <= 0.5
        assert not mask[low.repeat_interleave(4, 0).repeat_interleave(4, 1)].any()


def test_the_teacher_moves_a_tenth_of_the_way():
    """Weights and running statistics; counters of batches stay."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    teacher = deepcopy(network)
    network(torch.randn(2, 3, 8, 8))
    torch.nn.init.normal_(network[0].weight)
    before = deepcopy(teacher.state_dict())
    follow(teacher, network, 0.9)
    for key, value in teacher.state_dict().items():
        if key.endswith("num_batches_tracked"):
            assert value == 0
        else:
            torch.testing.assert_close(value, 0.9 * before[key] + 0.1 * network.state_dict()[key])
    assert not torch.equal(teacher[1].running_var, before["1.running_var"])
