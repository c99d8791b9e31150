"""A world of edits: a picture of a scene, an instruction, and the scene as it should be."""
