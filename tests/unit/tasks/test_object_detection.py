import contextlib
import io
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from shoal.data.augment import augment_with_boxes
from shoal.data.loader import Batch, ResidentShard, Rows
from shoal.data.sampler import Lanes
from shoal.distributed.process_group import SingleProcess
from shoal.errors import ConfigError, ModelError
from shoal.tasks.average_precision import AveragePrecision, Image, coco_of, detections_of
from shoal.tasks.boxes import (
    IMAGES as AT_A_TIME,
)
from shoal.tasks.boxes import (
    Found,
    are_boxes,
    assign,
    centres,
    find_boxes,
    generalized_overlap,
    overlaps,
    suppressed,
)
from shoal.tasks.object_detection import ObjectDetection
from shoal.training.counted import CountedShard

CLASSES = ("ant", "bee", "cat")
SIZE, STRIDE = (32, 48), 4


def task():
    return ObjectDetection(CLASSES, SIZE)


def targets(*images):
    """[n, most, 5] of lists of (class, left, top, right, bottom)."""
    found = torch.zeros(len(images), max(map(len, images)) or 1, 5)
    for row, boxes in enumerate(images):
        for place, box in enumerate(boxes):
            found[row, place] = torch.tensor(box)
    return found


def batch(*images):
    return Batch(torch.zeros(len(images), 1, *SIZE), targets(*images), len(images))


def outputs_for(found):
    """What a model returns that finds exactly the boxes: the logarithms of distances, and logits of 8 and -8."""
    height, width = SIZE[0] // STRIDE, SIZE[1] // STRIDE
    middle = centres(height, width, STRIDE, torch.device("cpu"))
    todo = assign(found, middle, STRIDE)
    outputs = torch.full((len(found), len(CLASSES) + 4, height * width), -8.0)
    outputs[todo.images, todo.classes, todo.cells] = 8.0
    here = middle[todo.cells]
    distances = torch.cat([here - todo.boxes[:, :2], todo.boxes[:, 2:] - here], dim=1)
    outputs[todo.images, 3:, todo.cells] = (distances.clamp(min=0.01) / STRIDE).log().float()
    return outputs.view(len(found), -1, height, width)


IMAGES = (
    [(0, 2, 3, 20, 21), (2, 24, 8, 40, 30)],
    [],
    [(1, 5, 5, 17, 13), (1, 30, 2, 46, 12), (0, 8, 18, 26, 31)],
    [(2, 10, 10, 30, 26)],
)


def test_a_model_that_finds_each_box_measures_1_and_one_that_finds_none_0():
    rows = batch(*IMAGES)
    measure = task().measures[0].fresh(torch.device("cpu"))
    measure.add(outputs_for(rows.targets), rows)
    found = measure.results()
    assert found["map"] == found["map_50"] == found["map_75"] == found["map_class_bee"] == pytest.approx(1)
    blind = task().measures[0].fresh(torch.device("cpu"))
    blind.add(torch.full((4, 7, 8, 12), -9.0), rows)
    assert blind.results()["map"] == blind.results()["map_class_cat"] == 0
    empty = task().measures[0].fresh(torch.device("cpu"))
    empty.add(torch.full((1, 7, 8, 12), -9.0), batch([]))
    assert math.isnan(empty.results()["map"])


def some_images(count=40, seed=0):
    """Truth, and detections of some of it: moved, doubled, of wrong classes, with scores of which many are equal."""
    draw = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        corners = draw.uniform(0, 80, (draw.integers(0, 6), 2))
        truth = np.hstack(
            [draw.integers(0, 3, (len(corners), 1)), corners, corners + draw.uniform(4, 120, corners.shape)]
        )
        found = np.repeat(truth, 2, axis=0)
        found[:, 1:] += draw.normal(0, 4, (len(found), 4))
        found = found[(found[:, 3] > found[:, 1]) & (found[:, 4] > found[:, 2])]
        found[:, 0] = np.where(draw.random(len(found)) < 0.2, 1, found[:, 0])
        images.append(Image(truth, np.hstack([found, draw.integers(1, 9, (len(found), 1)) / 10])))
    return images


def measured(states):
    measure = AveragePrecision(CLASSES, lambda outputs: outputs)
    measure.merge(states)
    return measure.results()


def test_average_precision_is_that_of_pycocotools():
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = sorted(some_images(), key=lambda image: image.key)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco_of(images, len(CLASSES))
        truth.createIndex()
        evaluated = COCOeval(truth, truth.loadRes(detections_of(images)), "bbox")
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    found = measured([images])
    names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
    assert [found[name] for name in names] == pytest.approx(evaluated.stats[:6].tolist(), abs=1e-6)
    assert 0.1 < found["map"] < 0.9


@pytest.mark.parametrize("workers", [2, 3])
def test_average_precision_is_the_same_however_images_are_divided(workers):
    images = some_images()
    assert measured([images[worker::workers] for worker in range(workers)]) == measured([images])


def test_average_precision_without_the_library_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(
        ConfigError,
        match=r"needs the package faster-coco-eval.*pip install 'shoal\[detection\]'",
    ):
        task().measures[0].fresh(torch.device("cpu"))
    with pytest.raises(ConfigError, match="faster-coco-eval"):
        ObjectDetection.check_installed()


def greedy(boxes, classes, most):
    kept = []
    for place in range(len(boxes)):
        if all(
            classes[place] != classes[one] or overlaps(boxes[place], boxes[one])[0] <= most for one in kept
        ):
            kept.append(place)
    return kept


def test_many_images_have_the_boxes_that_each_has_alone():
    """A model that has learnt is sure of few boxes, of another number in each image."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.rand((3 * AT_A_TIME + 5, 2 + 4, 8, 8), generator=generator)
    outputs[:, :2] = -9.0
    for image in range(len(outputs)):
        cells = torch.randperm(64, generator=generator)[: image % 9]
        outputs[image, 0].view(-1)[cells] = 3.0
    together = find_boxes(outputs, (64, 64), 8.0, 0.05, 0.5, 40)
    assert together.scores.shape == (len(outputs), 40)
    for image in range(len(outputs)):
        alone = find_boxes(outputs[image : image + 1], (64, 64), 8.0, 0.05, 0.5, 40)
        assert int((alone.scores > 0).sum()) > 0 or image % 9 == 0
        is_found = alone.scores[0] > 0
        torch.testing.assert_close(together.scores[image], alone.scores[0])
        torch.testing.assert_close(together.boxes[image][is_found], alone.boxes[0][is_found])
        assert torch.equal(together.classes[image][is_found], alone.classes[0][is_found])


def test_boxes_that_overlap_a_better_one_are_dropped_as_one_after_the_other_would_be():
    torch.manual_seed(0)
    corners = torch.rand(5, 60, 2) * 30
    boxes, classes = (
        torch.cat([corners, corners + 5 + torch.rand(5, 60, 2) * 15], dim=2),
        torch.randint(0, 2, (5, 60)),
    )
    dropped = suppressed(boxes, classes, 0.4)
    for image in range(5):
        assert (~dropped[image]).nonzero()[:, 0].tolist() == greedy(boxes[image], classes[image], 0.4)
    assert dropped.any()


def test_a_box_that_is_smaller_than_a_cell_has_a_cell_and_the_smaller_of_two_boxes_has_the_shared_ones():
    middle = centres(8, 12, STRIDE, torch.device("cpu"))
    tiny = assign(targets([(1, 9, 9, 10, 10)]), middle, STRIDE)
    assert middle[tiny.cells].tolist() == [[10, 10]]
    both = assign(targets([(0, 0, 0, 32, 32), (1, 12, 12, 20, 20)]), middle, STRIDE)
    assert set(both.classes.tolist()) == {1}


def test_the_overlap_of_boxes_that_do_not_meet_is_the_less_the_farther_they_are():
    one = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    near, far = (generalized_overlap(one, one + shift) for shift in (11, 30))
    assert far < near < 0
    assert generalized_overlap(one, one).item() == pytest.approx(1)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_loss_of_a_batch_is_divided_by_its_boxes_whoever_has_them(workers):
    torch.manual_seed(0)
    whole, outputs = batch(*IMAGES), torch.randn(4, 7, 8, 12)
    expected = task().own_total(outputs, whole) / 6
    parts = [
        Batch(whole.inputs[worker::workers], whole.targets[worker::workers], 4) for worker in range(workers)
    ]
    boxes = sum(task().terms(part) for part in parts)
    loss = sum(task().own_total(outputs[worker::workers], part) for worker, part in enumerate(parts)) / boxes
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    sums = sum(task().own_sums(outputs[worker::workers], part) for worker, part in enumerate(parts))
    assert task().own_metrics(sums)["loss"] == pytest.approx(expected.item(), rel=1e-12)


def test_batches_know_the_boxes_of_all_workers_and_of_none_count_1():
    rows = batch(*IMAGES)
    shard = ResidentShard(Lanes(4, 2, 0), Rows(rows.inputs, rows.targets), {})
    counted = list(CountedShard(shard, task().terms, SingleProcess()).batches(0, 0))
    assert [one.divisor for one in counted] == [float(are_boxes(one.targets).sum()) for one in counted]
    blank = ResidentShard(Lanes(2, 2, 0), Rows(rows.inputs[:2], torch.zeros(2, 1, 5)), {})
    assert next(CountedShard(blank, task().terms, SingleProcess()).batches(0, 0)).divisor == 1
    assert replace(counted[0], terms=None).divisor == 2


def test_outputs_of_another_shape_are_refused_with_the_one_that_is_needed():
    with pytest.raises(ModelError, match=r"returned \(4, 3\) for 4 images.*model.name=detector"):
        task().own_total(torch.zeros(4, 3), batch(*IMAGES))


def test_what_is_found_is_cut_at_the_edges_and_best_first():
    outputs = torch.full((1, 7, 8, 12), -8.0)
    outputs[0, 1, 0, 0], outputs[0, 2, 4, 4] = 1.0, 2.0
    outputs[0, 3:] = math.log(3)
    found: Found = task().found(outputs)
    assert found.classes[0, :2].tolist() == [2, 1]
    assert found.boxes[0, 1].tolist() == pytest.approx([0, 0, 14, 14])
    assert (found.scores[0] > 0).sum() == 2


@pytest.mark.parametrize(("flip", "pad"), [(True, 0), (False, 5), (True, 5)])
def test_boxes_move_with_the_pixels(flip, pad):
    draw = np.random.default_rng(0)
    images, boxes = torch.zeros(40, 1, 24, 30), torch.zeros(40, 2, 5)
    for row in range(40):
        left, top = draw.integers(0, 18), draw.integers(0, 12)
        right, bottom = left + draw.integers(2, 12), top + draw.integers(2, 12)
        images[row, 0, top:bottom, left:right] = 1
        boxes[row, 0] = torch.tensor([2, left, top, right, bottom])
    moved, found = augment_with_boxes(images, boxes, np.arange(40), 3, 1, flip, pad)
    changed = 0
    for image, box, before in zip(moved, found[:, 0], boxes[:, 0], strict=True):
        y, x = image[0].nonzero(as_tuple=True)
        if not len(y):
            assert not box.any()
            continue
        assert box.tolist() == [2, x.min(), y.min(), x.max() + 1, y.max() + 1]
        changed += box.tolist() != before.tolist()
    assert changed > 10
    assert not found[:, 1].any()


def test_a_box_that_leaves_the_image_is_left_out():
    boxes = torch.tensor([[[1.0, 0, 0, 2, 2]]]).expand(30, 1, 5)
    moved, found = augment_with_boxes(torch.ones(30, 1, 16, 16), boxes, np.arange(30), 0, 0, False, 8)
    gone = ~are_boxes(found)
    assert gone.any()
    assert (found[gone] == 0).all()
