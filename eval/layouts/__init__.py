"""What each table of the documents shows, from the run records in eval/results/.

A function returns one table in Markdown and TABLES names it; `tables.py` writes it into the
documents. All but "highlights" end with the hardware, the date and the record's file name. A record
of other weights than those that lie where it says is refused.
"""

from collections.abc import Callable
from functools import partial

from layouts.edits import (
    completion_400_table,
    completion_filling_table,
    completion_particles_table,
    completion_table,
    counterfactuals_table,
    edits_table,
    erasing_table,
    joints_table,
    seams_table,
)
from layouts.held_out import ablation_table, held_out_table, layers_table, trend_table
from layouts.highlights import highlights_table
from layouts.parts import unnamed_table
from layouts.samples import (
    blind_table,
    maps_table,
    obedience_table,
    objects_table,
    re_ranking_table,
    rejection_table,
)
from layouts.speed import (
    first_picture_table,
    passes_table,
    speed_ffhq_table,
    speed_scales_table,
    speed_table,
    speed_ways_table,
    split_table,
)

TABLES: dict[str, Callable[[], str]] = {
    "highlights": highlights_table,
    "held-out": held_out_table,
    "ablation": ablation_table,
    "layers": layers_table,
    "trend": trend_table,
    "obedience": obedience_table,
    "objects": objects_table,
    "maps": maps_table,
    "rejection": rejection_table,
    "re-ranking": re_ranking_table,
    "edits": edits_table,
    "erasing": erasing_table,
    "counterfactuals": counterfactuals_table,
    "blind": blind_table,
    "completion": completion_table,
    "completion-400": completion_400_table,
    "completion-particles": completion_particles_table,
    "completion-filling": completion_filling_table,
    "seams": seams_table,
    "joints": joints_table,
    "first-picture": first_picture_table,
    "speed": partial(speed_table, "scenery_speed"),
    "speed-window": partial(speed_table, "scenery_speed_window32"),
    "speed-scales": speed_scales_table,
    "speed-ways": speed_ways_table,
    "speed-ffhq": speed_ffhq_table,
    "split": split_table,
    "unnamed": unnamed_table,
    "passes": partial(
        passes_table, "passes", "first guess", "guess", {"draft": "draft of x_1", "x_t": "x_t"}
    ),
    "passes-equal-training": partial(
        passes_table,
        "passes_equal_training",
        "chain",
        "model",
        {
            "runs/scenery-plain/model": "T = 3",
            "runs/scenery-2/model": "T = 2, equal parameters and steps",
        },
    ),
}
