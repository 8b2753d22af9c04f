"""Pure library of Tidemark: knows no job, no Slurm and no submitit."""
