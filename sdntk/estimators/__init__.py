"""Estimators in scikit-learn's form."""

from sdntk.estimators.classifier import SelfDistilledClassifier
from sdntk.estimators.regressor import SelfDistilledRegressor

__all__ = ["SelfDistilledClassifier", "SelfDistilledRegressor"]
