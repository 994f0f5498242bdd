import cv2
import numpy as np
import pytest
from PIL import Image
from tests.images.test_read import eye, save

from drgrade.images import jpeg
from drgrade.images.crop import crop_photograph
from drgrade.images.prepare import prepare
from drgrade.images.survey import survey
from drgrade.params import Crop


def noisy(width, height):
    """A disc with noise, so that every decoding has other pixels."""
    noise = np.random.default_rng(0).integers(0, 24, (height, width, 3)).astype(np.uint8)
    return eye(width, height, 0.46 * height) + noise * (eye(width, height, 0.46 * height) > 0)


def turned(path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    return save(path, picture, exif=exif)


@pytest.fixture
def decodings(monkeypatch):
    """The factors of all JPEG decodings."""
    factors, decode = [], jpeg.decode

    def counted(stream, factor=1):
        factors.append(factor)
        return decode(stream, factor)

    monkeypatch.setattr(jpeg, "decode", counted)
    return factors


@pytest.mark.parametrize("rule", ["disc", "o_O", "graham", "clpi"])
@pytest.mark.parametrize("name", ["a.jpg", "turned.jpg", "a.png"])
@pytest.mark.parametrize("size", [96, 300])
def test_crop_and_survey_are_those_of_the_pipeline(tmp_path, rule, name, size):
    write = turned if name.startswith("turned") else save
    path, options = write(tmp_path / name, noisy(1500, 1000)), Crop(rule=rule, size=size)
    found = prepare(path, options)
    crop, geometry, used = crop_photograph(path, options)
    assert (found.geometry, found.rule, found.survey) == (geometry, used, survey(path))
    np.testing.assert_array_equal(found.crop, crop)
    assert found.small is None


def test_each_resolution_is_decoded_once(tmp_path, decodings):
    path = save(tmp_path / "a.jpg", noisy(1500, 1000))
    prepare(path, Crop(size=300))  # 320 px for the survey and 375 px for the crop: both of 500
    assert decodings == [2]
    decodings.clear()
    prepare(path, Crop(size=96))  # 120 px for the crop
    assert decodings == [2, 8]
    decodings.clear()
    prepare(turned(path, noisy(1500, 1000)), Crop(size=96))
    assert decodings == [1]


def test_the_small_copy_is_the_photograph(tmp_path):
    picture = cv2.GaussianBlur(noisy(1500, 1000), (0, 0), 3)
    found = prepare(save(tmp_path / "a.png", picture), Crop(size=64), small=300)
    np.testing.assert_array_equal(found.small, cv2.resize(picture, (300, 200), interpolation=cv2.INTER_AREA))


def test_content_is_prepared_like_its_file(tmp_path):
    path = save(tmp_path / "a.jpg", noisy(600, 400))
    by_content, by_path = (prepare(given, Crop(size=64)) for given in (path.read_bytes(), path))
    np.testing.assert_array_equal(by_content.crop, by_path.crop)
    assert by_content.survey == by_path.survey
    assert prepare(b"", Crop(size=64)).reason == "empty file"
