"""Symmetric positive semidefinite matrices that know their structure."""

from heatbath.operators.aligned import empty_aligned as empty_aligned
from heatbath.operators.aligned import lies_alike as lies_alike
from heatbath.operators.aligned import product as product
from heatbath.operators.base import Operator as Operator
from heatbath.operators.block_diagonal import BlockDiagonal as BlockDiagonal
from heatbath.operators.block_diagonal import join_features as join_features
from heatbath.operators.block_diagonal import split_features as split_features
from heatbath.operators.dense import Dense as Dense
from heatbath.operators.diagonal import Diagonal as Diagonal
from heatbath.operators.door import check_symmetric as check_symmetric
from heatbath.operators.eigen_corrected import EigenCorrected as EigenCorrected
from heatbath.operators.gram import DenseRoot as DenseRoot
from heatbath.operators.gram import Gram as Gram
from heatbath.operators.gram import Root as Root
from heatbath.operators.kronecker import Kronecker as Kronecker
from heatbath.operators.shifted import Shifted as Shifted
from heatbath.operators.tree import from_plain as from_plain
from heatbath.operators.tree import map_tensors as map_tensors
from heatbath.operators.tree import nodes_of as nodes_of
from heatbath.operators.tree import same_structure as same_structure
from heatbath.operators.tree import select as select
from heatbath.operators.tree import to_plain as to_plain
from heatbath.operators.tree import tree as tree
