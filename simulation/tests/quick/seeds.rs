//! Plans that follow from seeds.

use verve_simulation::plan::Plan;
use verve_simulation::run::run;

#[test]
fn a_seed_is_the_same_each_time() {
    for seed in 1..6 {
        let (first, second) = (run(&Plan::new(seed), false, None), run(&Plan::new(seed), true, None));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert!(first.answered > 0 && !second.story.is_empty(), "seed {seed}");
    }
}

#[test]
fn seeds_are_as_promised() {
    for seed in 1..30 {
        assert_eq!(run(&Plan::new(seed), false, None).wrong, [], "seed {seed}");
    }
}
