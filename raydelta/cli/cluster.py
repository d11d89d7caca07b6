"""The cluster and this machine: jobs, dashboard, doctor."""

import json
from pathlib import Path
from typing import Annotated

import typer

from raydelta.cli.options import (
    Address,
    ClusterFile,
    Json,
    Runs,
)
from raydelta.errors import UserError

app = typer.Typer()


@app.command("jobs")
def list_jobs(
    job: Annotated[str | None, typer.Argument(help="Follow this one.")] = None,
    cluster: ClusterFile = None,
    address: Address = None,
    as_json: Json = False,
    stop: Annotated[bool, typer.Option("--stop", metavar="", help="End it instead; finished stages stay.")] = False,
) -> None:
    """List the jobs of a cluster with state, age and command, or follow or stop one of them."""
    from raydelta.compute import remote

    if stop and job is None:
        raise UserError("--stop: name the job; raydelta jobs lists them")
    if job and not stop:
        raise typer.Exit(remote.follow(job, cluster, address))
    with remote.reach(cluster, address) as where:
        if job:
            remote.stop(where, job)
            print(f"stopped {job}")
        else:
            jobs = remote.list_jobs(where)
            print(json.dumps(jobs, indent=1) if as_json else remote.format_jobs(jobs))


@app.command()
def dashboard(
    cluster: Annotated[Path, typer.Argument(help="The file that ray up has made the cluster from.")] = Path(
        "cluster.yaml"
    ),
) -> None:
    """Open a tunnel to the dashboard of a cluster, until Ctrl-C."""
    from raydelta.compute.remote import hold_tunnel

    hold_tunnel(cluster)


@app.command()
def doctor(
    addresses: Annotated[list[str] | None, typer.Argument(help="Data sets or buckets (s3://…) to reach.")] = None,
    runs: Runs = "runs",
    as_json: Json = False,
) -> None:
    """Check versions, devices, cluster, storage, memory; say what is wrong and how to mend it. Exit code 1 if bad."""
    from raydelta.cli.doctor import checks

    found = checks.diagnose(runs, addresses or [])
    print(checks.as_json(found) if as_json else checks.format_checks(found))
    if any(check.state == "bad" for check in found):
        raise typer.Exit(1)
