"""The plan of a stage that lists its items itself."""

from pathlib import Path

from vidvq.errors import UsageError
from vidvq.formats.plan import Plan, create_plan, has_plan, read_plan, refuse_other_origin
from vidvq.formats.rows import RowCodec
from vidvq.jobs.stage import AnyRow, ListedStage


def plan_listed(stage: ListedStage[AnyRow], out: Path) -> Plan:
    """The plan of an output directory: the one that is there, or a new one.

    Raises:
        UsageError: there is nothing to make, or the plan that is there was made from something else.
    """
    made_from = stage.identity()
    if has_plan(out):
        plan = read_plan(out)
    else:
        table = RowCodec(stage.row).to_table(stage.rows())
        if not table.num_rows:
            raise UsageError(f"the inputs hold no {stage.unit}; nothing to {stage.name}")
        plan = create_plan(out, stage.name, stage.prefix, made_from, table, stage.files())
    refuse_other_origin(out, plan, stage.name, made_from)
    return plan
