//! The steps of a tournament.

use std::collections::HashMap;

use idiolect_uniqueness::vectors::distance;
use idiolect_validator::MovingAverage;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;

use super::standing::{Member, Standing, StepRecord, Tally};
use super::{Asked, Rules, Tournament, TournamentError};
use crate::statistics::below;

/// One batch's history: everybody's moving average where one contestant takes part, or none.
struct World {
    average: MovingAverage,
    /// By uid: the models, then the contestant, then its copies.
    tallies: Vec<Tally>,
}

/// A place in a batch.
#[derive(Clone, Copy)]
struct Seat {
    uid: usize,
    reply: usize,
    /// Whether it is the reply of a contestant once more: that is at no distance from it.
    is_copy: bool,
}

impl Tournament<'_> {
    /// Plays all steps, and returns how everybody stands: contestants in their order, then the population by its weights. `each` is told of every batch.
    ///
    /// # Errors
    /// [`TournamentError`] for rules that cannot be played by.
    pub fn play(&self, rules: &Rules, each: &mut dyn FnMut(StepRecord)) -> Result<Vec<Standing>, TournamentError> {
        let Rules { batch, steps, clones, seed } = *rules;
        if batch < 2 {
            return Err(TournamentError::Batch(batch));
        }
        if clones > batch - 2 {
            return Err(TournamentError::Clones { clones, batch });
        }
        if steps == 0 {
            return Err(TournamentError::Steps);
        }
        let world = |n_more: usize| World {
            average: MovingAverage::new(self.models.len() + n_more, self.profile.alpha),
            tallies: vec![Tally::new(self.prompts.len()); self.models.len() + n_more],
        };
        let mut population = world(0);
        let mut worlds: Vec<World> = self.contestants.iter().map(|_| world(1 + clones)).collect();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut order: Vec<usize> = (0..self.prompts.len()).collect();
        for step in 0..steps {
            if step % order.len() == 0 {
                let n = order.len();
                shuffle(&mut order, n, &mut random);
            }
            let prompt = order[step % order.len()];
            let asked = &self.prompts[prompt];
            let between = &self.distances(asked, prompt);
            let mut rivals = asked.rivals.clone();
            let n_drawn = batch.min(rivals.len());
            shuffle(&mut rivals, n_drawn, &mut random);
            let seat = |&(uid, reply): &(usize, usize)| Seat { uid, reply, is_copy: false };
            let drawn: Vec<Seat> = rivals[..n_drawn].iter().map(seat).collect();
            if drawn.len() > 1 {
                each(self.step(step, prompt, None, &drawn, between, &mut population));
            }
            for (nth, world) in worlds.iter_mut().enumerate() {
                let (reply, copies) = &self.contestants[nth].replies[prompt];
                let n_kept = drawn.len().min(batch - 1 - clones);
                let mut seats = drawn[..n_kept].to_vec();
                let first = self.models.len();
                seats.push(Seat { uid: first, reply: *reply, is_copy: false });
                for clone in 0..clones {
                    let (reply, is_copy) = copies.get(clone).map_or((*reply, true), |&copy| (copy, false));
                    seats.push(Seat { uid: first + 1 + clone, reply, is_copy });
                }
                each(self.step(step, prompt, Some(nth), &seats, between, world));
            }
        }
        let weights = population.average.weights();
        let mut of_population: Vec<Standing> = population
            .tallies
            .iter()
            .enumerate()
            .filter(|(_, tally)| tally.n_steps() > 0)
            .map(|(uid, tally)| tally.standing(self.models[uid], false, weights[uid], seed))
            .collect();
        of_population.sort_by(|a, b| b.weight_share.total_cmp(&a.weight_share).then_with(|| a.name.cmp(&b.name)));
        let of_contestants = worlds.iter().zip(&self.contestants).map(|(world, contestant)| {
            let uid = self.models.len();
            world.tallies[uid].standing(contestant.name, true, world.average.weights()[uid], seed)
        });
        Ok(of_contestants.chain(of_population).collect())
    }

    /// Returns the distances between all replies that may meet at a prompt.
    fn distances(&self, asked: &Asked<'_>, prompt: usize) -> HashMap<(usize, usize), f32> {
        let own = self.contestants.iter().map(|contestant| &contestant.replies[prompt]);
        let own = own.flat_map(|(reply, copies)| copies.iter().copied().chain([*reply]));
        let all: Vec<usize> = asked.rivals.iter().map(|&(_, reply)| reply).chain(own).collect();
        let mut between = HashMap::with_capacity(all.len() * all.len() / 2);
        for (nth, &a) in all.iter().enumerate() {
            for &b in &all[..nth] {
                if let (Some(x), Some(y)) = (&self.embeddings[a], &self.embeddings[b])
                    && x.len() == y.len()
                {
                    between.insert((a.min(b), a.max(b)), distance(x, y));
                }
            }
        }
        between
    }

    /// Scores one batch, and tells the world.
    fn step(
        &self,
        step: usize,
        prompt: usize,
        contestant: Option<usize>,
        seats: &[Seat],
        between: &HashMap<(usize, usize), f32>,
        world: &mut World,
    ) -> StepRecord {
        let gate = &self.profile.gate;
        let from = |seat: &Seat, other: &Seat| {
            if seat.reply == other.reply && (seat.is_copy || other.is_copy) {
                return self.embeddings[seat.reply].as_ref().map(|_| 0.0);
            }
            between.get(&(seat.reply.min(other.reply), seat.reply.max(other.reply))).copied()
        };
        let mut members: Vec<Member> = Vec::with_capacity(seats.len());
        for (nth, seat) in seats.iter().enumerate() {
            let others = seats.iter().enumerate().filter(|(other, _)| *other != nth);
            let mut distances: Vec<f32> = others.filter_map(|(_, other)| from(seat, other)).collect();
            distances.sort_by(f32::total_cmp);
            // An embedding without a direction is a repeat of anything.
            let distance = distances.get(gate.batch_rank.saturating_sub(1)).copied().unwrap_or(0.0);
            let batch_reward = gate.batch.at(distance);
            let failed = self.replies.all()[seat.reply].text.is_empty();
            let quality = self.qualities.map(|qualities| qualities[seat.reply]);
            let penalties = self.penalties.and_then(|penalties| penalties[seat.reply]);
            let kept = 1.0 - penalties.unwrap_or(0.0);
            let earned = f64::from(gate.factor(batch_reward, None)) * f64::from(quality.unwrap_or(1.0)) * kept;
            let irrelevant = !failed && self.irrelevant.is_some_and(|irrelevant| irrelevant[seat.reply]);
            let reward = if failed || irrelevant { 0.0 } else { earned };
            members.push(Member {
                name: self.name(contestant, seat.uid),
                distance,
                batch_reward,
                failed,
                irrelevant,
                masked: !failed && batch_reward <= gate.pass_above,
                quality,
                penalties,
                label: self.replies.all()[seat.reply].label,
                reward,
                place: 0.0,
            });
        }
        for nth in 0..members.len() {
            let own = members[nth].reward;
            let n_better = members.iter().filter(|other| other.reward > own).count();
            let n_same = members.iter().filter(|other| other.reward == own).count();
            // Those that earn the same share their places.
            members[nth].place = n_better as f64 + (n_same as f64 + 1.0) / 2.0;
        }
        #[expect(clippy::cast_possible_truncation, reason = "rewards are f32 in validators")]
        let rewards: Vec<(usize, f32)> =
            seats.iter().zip(&members).map(|(seat, member)| (seat.uid, member.reward as f32)).collect();
        // Every uid is known.
        let _ = world.average.update(&rewards);
        for (seat, member) in seats.iter().zip(&members) {
            world.tallies[seat.uid].add(prompt, member);
        }
        let contestant = contestant.map(|nth| self.contestants[nth].name.to_owned());
        StepRecord { step, prompt: self.prompts[prompt].prompt.to_owned(), contestant, members }
    }

    fn name(&self, contestant: Option<usize>, uid: usize) -> String {
        match (self.models.get(uid), contestant) {
            (Some(model), _) => (*model).to_owned(),
            (None, Some(nth)) if uid == self.models.len() => self.contestants[nth].name.to_owned(),
            (None, Some(nth)) => format!("{}#{}", self.contestants[nth].name, uid - self.models.len()),
            (None, None) => String::new(),
        }
    }
}

/// Brings a random choice of `n` to the front, in random order.
fn shuffle<T>(items: &mut [T], n: usize, random: &mut ChaCha8Rng) {
    for i in 0..n.min(items.len()) {
        let other = i + below(random, items.len() - i);
        items.swap(i, other);
    }
}
