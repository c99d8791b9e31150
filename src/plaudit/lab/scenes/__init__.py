"""The `scenes` world: captions of coloured shapes, their renderer and their exact checker."""
