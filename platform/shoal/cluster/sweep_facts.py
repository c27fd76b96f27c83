"""What MLflow is told of a sweep besides its metrics: the space among its params, its best trial among its tags."""

from typing import Any

from shoal.cluster.facts import facts_of
from shoal.cluster.plan import measure_model
from shoal.cluster.sweep_plan import SweepPlan
from shoal.data.prepare import Prepared
from shoal.runfolder import FACTS, RunFolder
from shoal.sweep.trials import TrialRow


def sweep_facts(plan: SweepPlan, prepared: Prepared) -> dict[str, Any]:
    """Return what is known before the first trial."""
    base, tune = plan.base, plan.config.tune
    facts = facts_of(base.config, prepared, base.size or measure_model(base.config, prepared))
    facts["params"] |= dict(plan.config.space) | {
        f"tune.{key}": getattr(tune, key) for key in ("metric", "scheduler", "search", "repeat")
    }
    del facts["params"]["model.parameters"]
    facts["tags"] |= {"shoal.trials": plan.total, "shoal.sweep": "true"}
    return facts


def add_best(folder: RunFolder, metric: str, won: TrialRow, run_id: str | None, note: str) -> None:
    """Add which trial is best; a later attempt may find a better one, so it is tags that say it."""
    facts = folder.read_json(FACTS)
    facts["tags"] |= {f"best.{key}": value for key, value in won.params.items()}
    facts["tags"] |= {
        "best.trial": won.name,
        f"best.{metric.replace('/', '_')}": won.metric,
        "best.run_id": run_id,
        "mlflow.note.content": note,
    }
    folder.write_json(FACTS, facts)
