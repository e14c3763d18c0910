"""The demo's images and edits: what is held out, what an edit changes, training pairs on disk, and scores."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from training.data.index import read_pairs
from training.demo import scenes
from training.demo.analogies import draw_analogies, score, stack_images
from training.demo.base import COPY_SHARE, draw_grids, draw_single_images
from training.demo.compare import TEST_SETS, as_table, copy_b, measure
from training.demo.scenes import KINDS, TEST_PHOTOS, TRAINED_KINDS, TRAINING_PHOTOS, Edit, apply_edit, draw, edits_of


def _rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_every_edit_changes_the_image_and_stays_on_the_8_bit_grid(kind):
    for edit in edits_of(kinds=[kind]):
        scene = draw(edit, _rng(3))
        assert np.array_equal(scene.pixels, draw(edit, _rng(3)).pixels)
        edited = apply_edit(scene, edit)
        assert edited.shape == (scenes.ART_SIZE, scenes.ART_SIZE, 3) and edited.dtype == np.float32
        assert np.abs(edited - scene.pixels).max() > 0.05
        assert np.allclose(edited * 255, np.round(edited * 255), atol=1e-3)
        image = np.asarray(scenes.to_image(edited), np.float32)
        assert image.shape == (96, 96, 3)
        assert np.array_equal(image, image[::8, ::8].repeat(8, 0).repeat(8, 1))


def test_ground_shape_and_outline_do_not_overlap_and_a_photograph_takes_no_edit_of_them():
    for seed in range(50):
        scene = scenes.draw_scene(_rng(seed))
        regions = [(apply_edit(scene, Edit(kind, hue=0)) != scene.pixels).any(-1) for kind in ("ground", "shape")]
        assert not (regions[0] & regions[1]).any() and regions[0].any() and regions[1].any()
        assert (apply_edit(scene, Edit("outline", hue=0)) != scene.pixels).any(-1)[scene.shape_mask].sum() == 0
    photo = scenes.draw_mosaic(TRAINING_PHOTOS, _rng())
    assert not photo.takes(Edit("shape", hue=1)) and photo.takes(Edit("gray"))
    with pytest.raises(ValueError, match="not a photograph"):
        apply_edit(photo, Edit("shape", hue=1))


def test_held_out_parameters_and_kinds_are_never_trained_on_and_each_hue_is_seen_with_another_kind():
    trained = edits_of(kinds=TRAINED_KINDS, is_held_out=False)
    assert not any(edit.is_held_out for edit in trained)
    assert {edit.kind for edit in trained} == set(TRAINED_KINDS) == set(KINDS) - set(scenes.HELD_OUT_KINDS)
    assert not set(TRAINING_PHOTOS) & set(TEST_PHOTOS)
    hue_edits = edits_of(kinds=[kind for kind in scenes.HUE_KINDS if kind in TRAINED_KINDS])
    states = {(edit.hue, edit.is_held_out) for edit in hue_edits}
    assert states == {(hue, is_held_out) for hue in range(12) for is_held_out in (True, False)}


def test_training_pairs_are_indexed_and_weighted_by_kind(tmp_path):
    records = read_pairs(scenes.write_dataset(tmp_path / "pairs", pairs_per_edit=2, seed=1))
    weights = defaultdict(float)
    for record in records:
        assert record.before.is_file() and record.after.is_file()
        weights[record.task.split("-")[0]] += record.weight / 2
    assert weights == pytest.approx({kind: scenes.KIND_WEIGHTS.get(kind, 1.0) for kind in TRAINED_KINDS})


@pytest.mark.parametrize("draw_batch", [draw_single_images, draw_grids])
def test_batches_copy_b_exactly_where_the_code_is_zero(draw_batch):
    batch = draw_batch(_rng(), 64)
    is_copy = ~batch.code.any(1)
    assert 0 < int(is_copy.sum()) < 64 * 3 * COPY_SHARE
    assert torch.equal(batch.context[is_copy], batch.target[is_copy])
    assert all(not torch.equal(a, b) for a, b in zip(batch.context[~is_copy], batch.target[~is_copy], strict=True))


def test_the_true_answer_scores_best_and_copying_scores_wrong():
    analogies = draw_analogies(edits_of(is_held_out=True)[:6], per_edit=1, seed=0, photos=TEST_PHOTOS)
    assert all(not np.array_equal(analogy.scene_a.pixels, analogy.scene_b.pixels) for analogy in analogies)
    assert all(item.is_right and item.whole_db == 60 for item in score(stack_images(analogies)[3], analogies))
    assert not any(item.is_right for item in score(copy_b(analogies), analogies))


def test_the_table_has_a_column_for_every_set_and_the_changed_region_is_harder_than_the_whole():
    scores = measure({"copy b#0": copy_b, "copy b#1": copy_b}, TEST_SETS, per_edit=1, seed=0)
    header, _, row = as_table(scores, ["copy b"]).splitlines()
    assert header == "| method | seen parameters | held-out parameters | held-out edits |"
    assert row.startswith("| copy b | ") and row.count(" ± 0.0 / ") == 3
    frames = [item for item in scores["seen parameters"]["copy b#0"] if item.edit.kind == "frame"]
    assert all(item.changed_db < item.whole_db for item in frames)
