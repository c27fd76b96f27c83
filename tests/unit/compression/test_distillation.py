"""A student is smaller, learns from its teacher's outputs, and is saved as any other model."""

import pytest
import torch

from shoal.compression.config import CompressOptions, StudentSize
from shoal.compression.distillation import TEACHER_SHARE, TEMPERATURE, TeacherLoss, check_model
from shoal.compression.fine_tuning import fine_tune
from shoal.data.loader import Batch
from shoal.errors import ModelError
from shoal.inference.description import DESCRIPTION, Description
from shoal.inference.predictor import Predictor
from shoal.tasks.base import Task
from shoal.tasks.classification import Classification
from shoal.tasks.multilabel_classification import MultilabelClassification
from shoal.tasks.regression import Regression


def test_a_student_learns_from_its_teacher_and_loads_as_any_other(subject, table):
    one = subject(table, label="y")
    # A teacher that has learnt the rows: the student alone sees its outputs, with a tenth of the labels' loss.
    fine_tune(one.predictor.model, one.predictor, one.rows.source, one.tuning(epochs=20))
    made = one.maker.student(one.saved, "", StudentSize(width=8, depth=1), one.tuning(epochs=20))
    assert made.name == "distill-width-8-depth-1"
    assert made.steps > 0
    again = Predictor.load(made.saved.folder)
    description = Description.load(made.saved.folder / DESCRIPTION)
    assert (description.model.width, description.model.depth) == (8, 1)
    assert [tuple(p.shape) for p in again.model.parameters()] == [(8, 3), (8,), (2, 8), (2,)]
    agreeing = again.arrays(one.rows.some)["prediction"] == one.predictor.arrays(one.rows.some)["prediction"]
    assert agreeing.mean() > 0.9
    assert one.predictor.task.own_loss is None  # the teacher is measured by its own


def test_the_loss_is_that_of_the_teacher_and_of_the_labels():
    teacher, outputs = torch.randn(5, 3), torch.randn(5, 3)
    targets = torch.tensor([0, 1, 2, 0, 1])
    losses = TeacherLoss(torch.nn.Identity(), Classification(3))(outputs, targets, teacher)
    own = torch.nn.functional.cross_entropy(outputs.double(), targets, reduction="none")
    torch.testing.assert_close(losses["labels"], (1 - TEACHER_SHARE) * own)
    soft = (teacher.double() / TEMPERATURE).softmax(1)
    expected = (soft * (soft.log() - (outputs.double() / TEMPERATURE).log_softmax(1))).sum(1) * TEMPERATURE**2
    torch.testing.assert_close(losses["teacher"], TEACHER_SHARE * expected)


@pytest.mark.parametrize(
    ("task", "shape"),
    [(Classification(3), (5, 3)), (MultilabelClassification(3), (5, 3)), (Regression(2.0), (5, 1))],
)
def test_the_loss_is_least_where_a_student_answers_as_its_teacher(task: Task, shape):
    teacher = torch.randn(shape)
    outputs = teacher.clone().requires_grad_()
    losses = task.soft_losses(outputs, teacher, Batch(teacher, torch.zeros(5), 5), TEMPERATURE)
    assert losses.shape == (5,)
    losses.sum().backward()
    torch.testing.assert_close(outputs.grad, torch.zeros(shape))
    moved = task.soft_losses(
        teacher + torch.randn(shape), teacher, Batch(teacher, torch.zeros(5), 5), TEMPERATURE
    )
    assert (moved > losses).all()


def test_a_language_model_is_taught_at_the_tokens_that_are_predicted(subject, text):
    one = subject(text, "causal_lm", "gpt", settings={"width": 32}, context=16)
    task, outputs, targets = one.predictor.task, torch.randn(2, 16, 30), torch.randint(1, 30, (2, 16))
    targets[1, 8:] = 0  # padding
    teacher = torch.randn(2, 16, 30)
    losses = task.soft_losses(outputs, teacher, Batch(targets, targets, 2), TEMPERATURE)
    padded = outputs.clone()
    padded[1, 8:] += 1.0
    padded[1, 8:, 0] += 5.0
    torch.testing.assert_close(
        task.soft_losses(padded, teacher, Batch(targets, targets, 2), TEMPERATURE), losses
    )
    soft = (teacher / TEMPERATURE).softmax(-1)
    each = (soft * (soft.log() - (outputs / TEMPERATURE).log_softmax(-1))).sum(-1) * TEMPERATURE**2
    torch.testing.assert_close(losses, torch.stack([each[0].sum(), each[1, :8].sum()]) / 16)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "task", "size"),
    [("gpt", "causal_lm", {"width": 16}), ("bert", "masked_lm", {"depth": 1})],
)
def test_language_models_have_students(subject, text, name, task, size):
    one = subject(text, task, name, settings={"width": 32}, context=16)
    made = one.maker.student(one.saved, "", StudentSize(**size), one.tuning())
    original, variant, *_ = made.measure(one.rows)
    assert variant.parameters < original.parameters
    assert variant.metrics["loss"] < original.metrics["loss"]  # of a teacher that had never been trained


@pytest.mark.parametrize(("name", "depths"), [("resnet", (14, 8)), ("inception", (3, 2))])
def test_models_of_images_have_students(subject, images, name, depths):
    one = subject(images, name=name, settings={"width": 16, "depth": depths[0]}, label="y")
    made = one.maker.student(one.saved, "", StudentSize(width=8, depth=depths[1]), one.tuning())
    original, variant, *_ = made.measure(one.rows)
    assert variant.parameters < original.parameters / 2


@pytest.mark.parametrize(
    ("name", "sizes", "line"),
    [
        (
            "mlp",
            {"width": 128},
            "compress.distill.width=128 is larger than the model's, whose model.width is 64",
        ),
        ("mlp", {"width": 32, "depth": 3}, "compress.distill.depth=3 is larger than the model's"),
        ("mlp", {"width": "32,64"}, "a student of 2,"),
        ("mine:Net", {"width": 32}, "model.name='mine:Net' has no students"),
    ],
)
def test_students_that_are_not_smaller_are_refused(subject, table, name, sizes, line):
    one = subject(table, label="y")
    description = Description.load(one.saved.folder / DESCRIPTION)
    description = description.model_copy(
        update={"model": description.model.model_copy(update={"name": name})}
    )
    with pytest.raises(ModelError, match=line):
        check_model(one.predictor, description, CompressOptions(distill=sizes))


def test_several_values_are_lists_and_each_combination_of_sizes_is_a_student():
    options = CompressOptions(prune="0.3,0.5", quantize="int8, bf16", distill={"width": "32,64", "depth": 1})
    assert options.prune == (0.3, 0.5)
    assert options.quantize == ("int8", "bf16")
    assert list(map(str, options.distill.sizes)) == ["{width: 32, depth: 1}", "{width: 64, depth: 1}"]
    assert CompressOptions().distill.sizes == []
    assert CompressOptions(prune=0.5).prune == (0.5,)
