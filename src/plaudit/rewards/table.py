"""The built-in rewards by name. A reward of your own needs no entry: name it `package.module:thing`."""

from __future__ import annotations

BUILT_IN = {
    # the lab
    "scene_exact": "plaudit.rewards.rules.scenes:scene_exact",
    "scene_graded": "plaudit.rewards.rules.scenes:scene_graded",
    "scene_match": "plaudit.rewards.rules.scenes:scene_match",
    "scene_proxy": "plaudit.rewards.learned.scene_proxy:SceneProxy",
    # images by arithmetic
    "brightness": "plaudit.rewards.rules.pixels:brightness",
    # comparisons with a reference picture
    # text in images
    # boxes and points
    # drawings, plots, programs
    # answers and reasoning
    # lengths
    # texts compared
    # encoders and likelihoods
    # novelty
    # signals
    # other places
}
