"""From prompts to codes, and to the files of token samples."""
