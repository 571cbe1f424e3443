"""How the vision-language judge of the tiny world is taught and measured.

`rlvid.models.tiny.vlm_build` makes it, `vlm_packed` runs it fast, `vlm_layout` says what it is
shown; the weights that came out are in `rlvid/models/tiny/vlm_judge/`. `teach` does it all.
"""
