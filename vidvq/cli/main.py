"""The command group, and the one place where an exception becomes a line and an exit code.

Exit codes: 0 all well; 1 the job ran but failures passed the threshold, or the machine gave out; 2 the user's mistake.
"""

import os
import sys
from typing import NoReturn

import click

from vidvq import __version__
from vidvq.cli import artifacts, export, stages, submit
from vidvq.video import VideoError

OK, FAILED, USAGE = 0, 1, 2
_INTERRUPTED = 130
_STORE_LIBRARIES = {"botocore", "aiobotocore", "aiohttp"}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="vidvq")
def cli() -> None:
    """Turn a corpus of video into discrete tokens, and tokens back into video.

    videos --shard--> clip shards --train--> checkpoint --tokenize--> token shards --decode--> frames

    Settings are key.sub=value behind the arguments, over a YAML file where one is given. VIDVQ_DEBUG=1 shows the
    traceback of an error.
    """


for command in (*stages.COMMANDS, *artifacts.COMMANDS, *export.COMMANDS, *submit.COMMANDS):
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code."""
    try:
        return cli.main(arguments, prog_name="vidvq", standalone_mode=False) or OK
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return OK
    except click.ClickException as error:
        return _tell(error.format_message().replace("\n", " "), USAGE)
    except click.exceptions.Abort:
        return _tell("interrupted; run the same command again to go on", _INTERRUPTED)
    except (ValueError, VideoError) as error:
        return _tell(str(error), USAGE)
    except ModuleNotFoundError as error:
        return _tell(f"{error.name} is not installed; run `pip install 'vidvq[all]'`", USAGE)
    except OSError as error:
        if error.errno is None:
            return _tell(str(error), FAILED)
        what = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        return _tell(f"{what}; mend that and run the same command again to go on", FAILED)
    except Exception as error:
        # What an object store's library raises is of no common kind: no credentials, an endpoint that is not there.
        if type(error).__module__.partition(".")[0] in _STORE_LIBRARIES:
            return _tell(f"the object store cannot be reached: {error}", USAGE)
        raise


def _tell(message: str, code: int) -> int:
    if os.environ.get("VIDVQ_DEBUG"):
        raise
    click.echo(f"vidvq: {message}", err=True)
    return code
