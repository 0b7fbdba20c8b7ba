"""Commands on clusters and the jobs they run."""

from pathlib import Path
from typing import Annotated

import typer

from hourglass.cli.arguments import Address, File, JobName, Overrides

Cpus = Annotated[int | None, typer.Option(min=0, help="Logical CPUs; default: all.")]
Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs; default: all.")]
Labels = Annotated[
    str | None, typer.Option(metavar="KEY=VALUE,...", help="Labels of the node in Ray.")
]
HeadAddress = Annotated[str, typer.Argument(metavar="ADDRESS", help="host:port of the head.")]


def start(
    host: Annotated[
        str, typer.Option(help="Address of this machine to listen on; default: loopback only.")
    ] = "127.0.0.1",
    cpus: Cpus = None,
    gpus: Gpus = None,
    labels: Labels = None,
    port: Annotated[int, typer.Option(help="Port of the head node.")] = 6379,
    dashboard_port: Annotated[
        int, typer.Option(help="Port of the dashboard and of job submission.")
    ] = 8265,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Require no token; allowed on loopback only.")
    ] = False,
    tls: Annotated[
        bool,
        typer.Option("--tls", help="Encrypt traffic between nodes, which need certificates."),
    ] = False,
) -> None:
    """Start the head of a cluster, secured by a token.

    With --host, other machines can join it and submit jobs.
    """
    from hourglass.cluster import labels as node_labels
    from hourglass.cluster import listing, nodes
    from hourglass.settings import Settings

    node = nodes.start(
        Settings(),
        host=host,
        cpus=cpus,
        gpus=gpus,
        node_labels=node_labels.parse_labels(labels),
        port=port,
        dashboard_port=dashboard_port,
        insecure=insecure,
        tls=tls,
    )
    typer.echo(listing.describe(node, Settings()))


def join(
    address: HeadAddress,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address of this machine for the others; default: the one that routes to the head."
        ),
    ] = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    labels: Labels = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the cluster's token (mode 0600); default: <home>/ray_token."),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(help="File that `cluster certify` made on the head; for a cluster with TLS."),
    ] = None,
) -> None:
    """Make this machine a node of a cluster.

    It needs the cluster's token and the versions of Python, Ray, PyTorch and hourglass of its head.
    """
    from hourglass.cluster import labels as node_labels
    from hourglass.cluster import listing, nodes
    from hourglass.settings import Settings

    node = nodes.join(
        Settings(),
        address,
        host=host,
        cpus=cpus,
        gpus=gpus,
        node_labels=node_labels.parse_labels(labels),
        token_file=token_file,
        certificate=certificate,
    )
    typer.echo(listing.describe(node, Settings()))


def certify(
    host: Annotated[str, typer.Argument(metavar="ADDRESS", help="Address of the other machine.")],
    days: Annotated[int, typer.Option(min=1, max=3650, help="Validity of the certificate.")] = 365,
) -> None:
    """Make the certificate with which another machine joins."""
    from hourglass.cluster import certificates
    from hourglass.settings import Settings

    typer.echo(str(certificates.certify(Settings().root, host, days)))


def leave() -> None:
    """Stop the node that this machine joined a cluster with."""
    from hourglass.cluster import nodes
    from hourglass.settings import Settings

    node = nodes.leave(Settings())
    typer.echo(f"{node.host} left the cluster at {node.address}")


def stop() -> None:
    """Stop the node of this machine, and the cluster if it is the head."""
    from hourglass.cluster import nodes
    from hourglass.settings import Settings

    node = nodes.stop(Settings())
    typer.echo("this project has no cluster" if node is None else f"stopped {node.dashboard}")


def status() -> None:
    """List the nodes of the cluster with resources and versions.

    Exits with code 1 if the node of this machine or the head does not run.
    """
    from hourglass.cluster import listing, nodes
    from hourglass.errors import ClusterError
    from hourglass.progress import print_table
    from hourglass.settings import Settings

    node = nodes.find(Settings())
    if node is None:
        typer.echo("down: this project has no cluster; `hourglass cluster start` starts one")
        raise typer.Exit(1)
    if node.dead:
        names = ", ".join(sorted({daemon.name for daemon in node.dead}))
        again = "`start`" if node.head else f"`hourglass cluster join {node.address}`"
        typer.echo(f"damaged: {names} exited; run `hourglass cluster stop`, then {again}")
        raise typer.Exit(1)
    typer.echo(listing.describe(node, Settings()))
    try:
        rows = listing.table(Settings(), node.address)
    except ClusterError as error:
        typer.echo(f"lost: {error}")
        raise typer.Exit(1) from None
    print_table(listing.COLUMNS, rows)


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
    entrypoint_cpus: Annotated[
        float, typer.Option(min=0, help="CPUs that the command itself reserves on the head.")
    ] = 0.0,
    entrypoint_memory_gib: Annotated[
        float, typer.Option(min=0, help="Memory that it reserves there; jobs queue for it.")
    ] = 1.0,
) -> None:
    """Run a job file on a cluster and follow its log.

    Exits with the exit code of the job.
    """
    from hourglass.cluster import plan
    from hourglass.cluster import submit as jobs
    from hourglass.settings import Settings

    settings = Settings()
    sent = plan.plan(
        file,
        overrides or (),
        settings=settings,
        job=job,
        cpus=entrypoint_cpus,
        memory_gib=entrypoint_memory_gib,
    )
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
