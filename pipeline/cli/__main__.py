"""`python -m pipeline.cli`: the console script `wit` where it is not installed."""

from pipeline.cli.main import run_command

if __name__ == "__main__":
    run_command()
