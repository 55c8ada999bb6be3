"""The page as a Space of the Hugging Face Hub, which has app.py beside this file.

AUTH is a secret of the Space, USER:PASSWORD; SPACE_HOST is the name that the Hub gives it.
"""

import os
import sys

import app

CONFIG = app.Config(
    host="0.0.0.0",
    port=7860,
    auth=os.environ.get("AUTH"),
    public_host=os.environ["SPACE_HOST"],
    trusted_proxy=["10.0.0.0/8"],  # the Hub's own network
)

if __name__ == "__main__":
    try:
        app.main(CONFIG)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
