"""The paper's figures and claims, run again on synthetic tasks: configs in, tables, figures and verdicts out."""
