"""Grids of images and filters show what they were given, and say what is right and what is wrong."""

import numpy as np
import pytest

from minitune.show import filters, images

GREY = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4)


def test_an_image_stands_under_its_name_and_a_mistake_is_named_in_another_colour(tmp_path):
    figure = images(GREY, [0, 1, 1], ["cat", "$dog"], [0, 0, 1], tmp_path / "new" / "grid.svg")
    drawn = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in drawn] == ["cat", "cat\nis $dog", "$dog"]
    assert [axes.title.get_color() == "black" for axes in drawn] == [True, False, True]
    np.testing.assert_array_equal(drawn[2].images[0].get_array(), GREY[2])
    assert drawn[0].images[0].get_clim() == (0, 255)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["grid.svg"]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_a_batch_are_brought_back_from_their_scale(channels):
    batch = np.full((1, channels, 2, 2), -1, np.float32)
    batch[:, :, 0] = 1
    shown = images(batch, [0], ["a"]).axes[0].images[0]
    assert shown.get_array().shape == ((2, 2) if channels == 1 else (2, 2, 3)) and shown.get_clim() == (0, 1)
    np.testing.assert_array_equal(np.asarray(shown.get_array()).reshape(2, -1), [[1] * 2 * channels, [0] * 2 * channels])


def test_more_images_than_a_line_holds_go_on_in_the_next():
    figure = images(np.zeros((9, 2, 2), np.uint8), [0] * 9, ["a"])
    assert len(figure.axes) == 16 and sum(bool(axes.images) for axes in figure.axes) == 9


@pytest.mark.parametrize("channels", [1, 3])
def test_filters_are_drawn_around_zero(channels):
    weight = np.linspace(-2, 1, 5 * channels * 9).reshape(5, channels, 3, 3)
    drawn = [axes.images[0] for axes in filters(weight).axes if axes.images]
    assert len(drawn) == 5 and drawn[0].get_clim() == (-2, 2)
    expected = weight[4, 0] if channels == 1 else (weight[4].transpose(1, 2, 0) / 2 + 1) / 2
    np.testing.assert_array_equal(drawn[4].get_array(), expected)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: images(GREY, [0, 1], ["a", "b"]), r"each of 3 images, got labels \(2,\)"),
    (lambda: images(GREY, [0, 1, 1], ["a", "b"], [0]), r"predictions \(1,\)"),
    (lambda: images(np.zeros((3, 2, 4, 4)), [0] * 3, ["a"]), r"images: expected \(N, H, W\).* got \(3, 2, 4, 4\)"),
    (lambda: images(GREY[:0], [], ["a"]), "nothing to draw"),
    (lambda: filters(np.zeros((4, 16, 3, 3))), r"filters: expected .* got \(4, 16, 3, 3\)"),
])
def test_other_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
