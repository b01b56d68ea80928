"""Where clips with known answers come from; every kind gives `EvaluationClip`s."""
