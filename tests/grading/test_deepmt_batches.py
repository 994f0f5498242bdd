"""Batches: pairs, what is read for them, and masks that move with their photographs."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.grading.deepmt_examples import SIDE, job, settings

from drgrade.grading.base import Photographs
from drgrade.grading.deepmt_batches import BatchReader, augmented, augmented_masks, pairs
from drgrade.lesions.mask_store import BITS
from drgrade.training import Batches


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 6), st.integers(0, 3))
def test_pairs(graded, drawn, size, epoch):
    """Graded photographs come in the usual order; those with lesions equally often."""
    found = pairs(graded, drawn, size, 7, epoch)
    usual = Batches(graded, size, 7, epoch)
    assert [pair[:, 0].tolist() for pair in found] == [batch.tolist() for batch in usual]
    others = np.concatenate(found)[:, 1]
    counts = np.bincount(others, minlength=drawn)
    assert len(counts) == drawn
    assert counts.max() - counts.min() <= 1


def test_an_epoch_is_of_pairs_or_of_graded_photographs_alone():
    reader = BatchReader(settings(), job(count=5), seed=7)
    expected = pairs(5, 3, 2, 7, epoch=1)
    assert reader.count(2) == len(expected)
    for paired in (True, False):
        samples = list(reader.loader(2, 1, paired=paired))
        assert len(samples) == len(expected)
        for sample, pair in zip(samples, expected, strict=True):
            assert sample.grades.tolist() == pair[:, 0].tolist()  # photograph n has grade n
            assert (sample.drawn is not None) == (sample.masks is not None) == paired


def test_a_batch_has_the_photographs_and_the_class_weights():
    weights = [1.0, 2.0, 3.0, 4.0, 5.0]
    reader = BatchReader(settings(class_weights=weights), job(), seed=7)
    sample = reader.read(np.array([[3, 1], [0, 2]]), epoch=0)
    assert sample.weights.tolist() == weights
    images = job().train.images
    for group, rows in ((sample.graded, [3, 0]), (sample.drawn, [8, 9])):
        np.testing.assert_array_equal(group.pictures.permute(0, 2, 3, 1).numpy(), images[rows])
    both = augmented(sample.graded, sample.drawn, size=SIDE)
    assert both.shape == (4, 3, SIDE, SIDE)
    torch.testing.assert_close(both[2:], augmented(sample.drawn, size=SIDE))
    assert (both.min() >= 0) & (both.max() <= 1)


def test_masks_move_with_their_photographs():
    """Photographs that are masks: after augmentation both still agree, but at borders."""
    reader = BatchReader(settings(), job(), seed=7)
    masks = reader.drawn.masks
    red = np.repeat(((masks.array & BITS["EX"]) > 0)[..., None] * np.uint8(255), 3, axis=3)
    reader.drawn = Photographs(red, reader.drawn.table.assign(row=[0, 1, 2]), masks=masks)
    reader.augment = reader.augment | {"brightness": 0.0, "contrast": 0.0}
    places = np.array([[0, 0], [1, 1], [2, 2]])
    sample = reader.read(places, epoch=0)
    found, annotated = augmented_masks(sample, SIDE)
    image = augmented(sample.drawn, size=SIDE)[:, 0]
    assert (found[:, 2] == (image >= 0.5)).float().mean() > 0.999
    assert torch.equal(found[:, 0], found[:, 2])
    assert not found[:, [1, 3]].any()
    assert annotated.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    again = reader.read(places, epoch=1)
    assert not torch.equal(augmented_masks(again, SIDE)[0], found)  # each epoch draws anew
