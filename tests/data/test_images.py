"""ImageSplit, and IDX files that are whole, cut off, of another kind, or that promise what they do not hold."""

import numpy as np
import pytest

from minitune.data import Dataset
from minitune.data.images import ImageSplit, idx_array

IMAGES = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4)


def idx(array, type_code=8):
    return bytes([0, 0, type_code, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def test_a_subset_has_the_rows_asked_for_in_their_order():
    split = ImageSplit(IMAGES, np.array([5, 6, 7]))
    part = split.subset([2, 0])
    assert len(split) == 3 and np.array_equal(part.images, IMAGES[[2, 0]]) and part.labels.tolist() == [7, 5]
    assert repr(split) == "ImageSplit(3 images of 2 x 4, labelled)"


def test_the_fingerprint_covers_every_pixel_shape_and_label():
    changed = IMAGES.copy()
    changed[2, 1, 3] += 1
    splits = [ImageSplit(IMAGES, np.array([0, 1, 2])), ImageSplit(changed, np.array([0, 1, 2])),
              ImageSplit(IMAGES.reshape(3, 4, 2), np.array([0, 1, 2])), ImageSplit(IMAGES, np.array([0, 1, 1]))]
    assert len({Dataset("a", (), {"train": split}, "").fingerprint for split in splits}) == 4


@pytest.mark.parametrize(("images", "labels", "message"), [
    (IMAGES / 255, [0, 1, 2], r"\(N, H, W\) uint8, got \(3, 2, 4\) float64"),
    (IMAGES.reshape(3, 8), [0, 1, 2], r"\(N, H, W\) uint8, got \(3, 8\)"),
    (IMAGES, [0, 1], r"3 images and labels \(2,\)"),
])
def test_other_arrays_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        ImageSplit(images, np.array(labels))


def test_idx_gives_the_array_back_to_write_in():
    array = idx_array(idx(IMAGES), 3, "a")
    assert np.array_equal(array, IMAGES) and array.dtype == np.uint8 and array.flags.writeable


@pytest.mark.parametrize(("content", "message"), [
    (b"", "expected an IDX file of uint8 in 3 dimensions"),
    (idx(IMAGES)[:10], "begins with 00 00 08 03 and 3 sizes, got '00 00 08 03 00 00 00 03 00 00'"),
    (idx(IMAGES[0]), "got '00 00 08 02"),
    (idx(IMAGES, type_code=13), "got '00 00 0d 03"),
    (b"\x1f\x8b" + idx(IMAGES), "got '1f 8b 00 00"),
    (idx(IMAGES)[:-1], r"promises \(3, 2, 4\), 24 values, but 23 follow"),
    (idx(IMAGES) + b"\0", "24 values, but 25 follow"),
    (bytes([0, 0, 8, 3]) + b"\xff" * 12 + b"\0", f"{(2**32 - 1) ** 3:,} values, but 1 follow"),
])
def test_a_wrong_idx_file_is_named_with_what_is_wrong(content, message):
    with pytest.raises(ValueError, match=f"load: a.idx: .*{message}"):
        idx_array(content, 3, "a.idx")
