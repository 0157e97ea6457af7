"""Operations: what there is to see of a deployment, and what to do about it."""
