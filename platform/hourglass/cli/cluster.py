"""Commands on clusters and the jobs they run."""

from typing import Annotated

import typer

from hourglass.cli.arguments import Address, File, JobName, Overrides


def start(
    cpus: Annotated[int | None, typer.Option(min=0, help="Logical CPUs; default: all.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs; default: all.")] = None,
    port: Annotated[int, typer.Option(help="Port of the head node.")] = 6379,
    dashboard_port: Annotated[
        int, typer.Option(help="Port of the dashboard and of job submission.")
    ] = 8265,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Require no token; the head still listens on loopback only."
        ),
    ] = False,
) -> None:
    """Start a head node on loopback, secured by a token."""
    from hourglass.cluster import start
    from hourglass.settings import Settings

    head = start.start(
        Settings(),
        cpus=cpus,
        gpus=gpus,
        port=port,
        dashboard_port=dashboard_port,
        insecure=insecure,
    )
    typer.echo(start.describe(head, Settings()))


def stop() -> None:
    """Stop the head node of this project and its jobs."""
    from hourglass.cluster import start
    from hourglass.settings import Settings

    head = start.stop(Settings())
    typer.echo("this project has no cluster" if head is None else f"stopped {head.dashboard}")


def status() -> None:
    """Print whether the head node of this project runs.

    Exits with code 1 if it does not.
    """
    from hourglass.cluster import start
    from hourglass.settings import Settings

    head = start.find(Settings())
    if head is None:
        typer.echo("down: this project has no cluster; `hourglass cluster start` starts one")
        raise typer.Exit(1)
    if head.dead:
        names = ", ".join(sorted({daemon.name for daemon in head.dead}))
        typer.echo(f"damaged: {names} exited; run `hourglass cluster stop`, then `start`")
        raise typer.Exit(1)
    typer.echo(start.describe(head, Settings()))


def submit(
    file: File,
    address: Address = None,
    overrides: Overrides = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the job's name and return at once.")
    ] = False,
    job: Annotated[
        str | None,
        typer.Option(
            "--id", metavar="JOB", help="Name of the job; the same file and name reattach to it."
        ),
    ] = None,
) -> None:
    """Run a job file on a cluster and follow its log.

    Exits with the exit code of the job.
    """
    from hourglass.cluster import plan
    from hourglass.cluster import submit as jobs
    from hourglass.settings import Settings

    settings = Settings()
    sent = plan.plan(file, overrides or (), settings=settings, job=job)
    client = jobs.open_client(address, settings)
    name = jobs.send(client, sent)
    typer.echo(name)
    if not no_wait:
        raise typer.Exit(jobs.follow(client, name))


def list_jobs(address: Address = None) -> None:
    """List the jobs of a cluster, newest last."""
    from hourglass.cluster import submit as jobs
    from hourglass.progress import print_table
    from hourglass.settings import Settings

    print_table(jobs.COLUMNS, jobs.table(jobs.open_client(address, Settings())))


def logs(
    job: JobName,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Keep printing until the job ends.")
    ] = False,
) -> None:
    """Print the log of a job.

    With --follow, exits with the exit code of the job.
    """
    from hourglass.cluster import submit as jobs
    from hourglass.settings import Settings

    client = jobs.open_client(address, Settings())
    jobs.info(client, job)
    if follow:
        raise typer.Exit(jobs.follow(client, job))
    typer.echo(client.get_job_logs(job), nl=False)


def stop_job(job: JobName, address: Address = None) -> None:
    """Stop a job and wait until it has ended."""
    from hourglass.cluster import submit as jobs
    from hourglass.settings import Settings

    details = jobs.stop_job(jobs.open_client(address, Settings()), job)
    typer.echo(f"{job} {details.status.value.lower()}")


def render(
    file: File,
    overrides: Overrides = None,
    image: Annotated[str, typer.Option(help="Container image of the pods.")] = "hourglass:local",
    namespace: Annotated[
        str | None, typer.Option(help="Namespace of the objects; default: kubectl's.")
    ] = None,
    memory_gib: Annotated[int, typer.Option(min=1, help="Memory per worker pod in GiB.")] = 8,
) -> None:
    """Print Kubernetes objects that run a job file.

    The cluster needs the KubeRay operator.
    """
    import math

    import yaml

    from hourglass.cluster import render as objects
    from hourglass.config import files
    from hourglass.errors import SpecError

    job = files.load(file, overrides or ())
    if job.kind == "tune":
        raise SpecError(f"{file}: found a tune job, render accepts train and score jobs")
    workers = job.scale.workers if job.kind == "train" else job.workers
    cpus = job.scale.cpus_per_worker if job.kind == "train" else 1
    accelerator = job.scale.accelerator if job.kind == "train" else job.accelerator
    found = objects.manifests(
        yaml.safe_dump(files.dump(job), sort_keys=False),
        job.name or "job",
        image=image,
        workers=1 if workers == "auto" else workers,
        cpus_per_worker=1 if cpus == "auto" else math.ceil(cpus),
        gpus_per_worker=1 if accelerator == "gpu" else 0,
        memory_gib_per_worker=memory_gib,
        namespace=namespace,
    )
    typer.echo(objects.to_yaml(found), nl=False)
