"""Layers: splitting a tar, rebuilding it from a recipe, merging layers into a tree."""

from typing import TYPE_CHECKING

from pagepool.lazily import attach

if TYPE_CHECKING:
    from pagepool.image.chunk import decode_chunk
    from pagepool.image.layer import MAX_LITERAL, LayerSplitter, Sink
    from pagepool.image.limits import Limits
    from pagepool.image.member import Kind, Member, normalise_path
    from pagepool.image.members import iter_members
    from pagepool.image.merge import TreeMerger, merge_layers
    from pagepool.image.ops import LITERAL, OBJECT, SLICE, Op
    from pagepool.image.recipe import EncodedChunk, RecipeWriter
    from pagepool.image.sparse import stored_pieces
    from pagepool.image.tree import Node, Tree
    from pagepool.image.treeencode import encode_tree
    from pagepool.image.treefile import ObjectInfo, TreeFile, TreeNode
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "chunk": "decode_chunk",
            "layer": "MAX_LITERAL LayerSplitter Sink",
            "limits": "Limits",
            "member": "Kind Member normalise_path",
            "members": "iter_members",
            "merge": "TreeMerger merge_layers",
            "ops": "LITERAL OBJECT SLICE Op",
            "recipe": "EncodedChunk RecipeWriter",
            "sparse": "stored_pieces",
            "tree": "Node Tree",
            "treeencode": "encode_tree",
            "treefile": "ObjectInfo TreeFile TreeNode",
        },
    )

__all__ = [
    "LayerSplitter",
    "Sink",
    "MAX_LITERAL",
    "Limits",
    "Kind",
    "Member",
    "normalise_path",
    "stored_pieces",
    "RecipeWriter",
    "EncodedChunk",
    "decode_chunk",
    "iter_members",
    "TreeMerger",
    "merge_layers",
    "Tree",
    "TreeFile",
    "TreeNode",
    "ObjectInfo",
    "encode_tree",
    "Node",
    "Op",
    "LITERAL",
    "OBJECT",
    "SLICE",
]
