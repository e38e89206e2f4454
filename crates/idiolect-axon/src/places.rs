//! Room for connections: how many there are, from where, and which one goes when there is no more.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::metrics as meters;
use crate::watch::Watch;

/// How long a connection must have asked nothing before it may lose its place: a client that has just been answered, or
/// has just connected, mostly asks again at once.
const MIN_REST: Duration = Duration::from_secs(1);

/// Open connections, in all and by address.
///
/// Where there is no room for another, one that rests makes some: of the address that holds most, the one that has rested
/// longest. So idle connections of a few addresses keep nobody out, and connections with a request in hand are never closed for this.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    max_per_ip: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    n: usize,
    last_id: u64,
    by_ip: HashMap<IpAddr, HashMap<u64, Arc<Watch>>>,
}

impl Places {
    pub(crate) fn new(max: usize, max_per_ip: usize) -> Self {
        Self { max, max_per_ip, open: Mutex::default() }
    }

    /// Takes a place for a connection from `ip`, or says which limit stands against it.
    pub(crate) fn enter(self: &Arc<Self>, ip: IpAddr, watch: Arc<Watch>) -> Result<Place, &'static str> {
        let mut open = self.lock();
        if open.by_ip.get(&ip).is_some_and(|open| open.len() >= self.max_per_ip) && !open.displace(Some(ip)) {
            return Err("per_ip");
        }
        if open.n >= self.max && !open.displace(None) {
            return Err("total");
        }
        open.last_id += 1;
        open.n += 1;
        let id = open.last_id;
        open.by_ip.entry(ip).or_default().insert(id, watch);
        meters::connections(open.n);
        Ok(Place { places: self.clone(), ip, id })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Counting is over in one step each, so nothing is left half done.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Sends a resting connection away, of one address or of any.
    fn displace(&mut self, ip: Option<IpAddr>) -> bool {
        let resting =
            self.by_ip.iter().filter(|(address, _)| ip.is_none_or(|ip| ip == **address)).flat_map(|(ip, open)| {
                let rests = open.iter().filter_map(|(id, watch)| Some((*id, watch.rest()?)));
                rests.filter(|(_, rest)| *rest >= MIN_REST).map(move |(id, rest)| (open.len(), rest, *ip, id))
            });
        let Some((_, _, ip, id)) = resting.max() else { return false };
        if let Some(watch) = self.remove(ip, id) {
            watch.dismiss();
        }
        true
    }

    fn remove(&mut self, ip: IpAddr, id: u64) -> Option<Arc<Watch>> {
        let of_ip = self.by_ip.get_mut(&ip)?;
        let watch = of_ip.remove(&id)?;
        if of_ip.is_empty() {
            self.by_ip.remove(&ip);
        }
        self.n -= 1;
        Some(watch)
    }
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    ip: IpAddr,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.places.lock();
        // One that was sent away has none any more.
        open.remove(self.ip, self.id);
        meters::connections(open.n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::axon::network;

    fn ip(text: &str) -> IpAddr {
        network(text.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn connections_are_counted_in_all_and_by_network() {
        let places = Arc::new(Places::new(3, 2));
        let enter = |text: &str| places.enter(ip(text), Watch::new());
        let first = enter("2001:db8::1").unwrap();
        let _second = enter("2001:db8::2").unwrap();
        assert_eq!(enter("2001:db8::3").err(), Some("per_ip"));
        let _third = enter("192.0.2.1").unwrap();
        assert_eq!(enter("192.0.2.2").err(), Some("total"));
        drop(first);
        assert!(enter("::ffff:192.0.2.1").is_ok());
        assert_eq!(places.lock().by_ip.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_rest_of_the_address_with_most_connections_makes_room() {
        let places = Arc::new(Places::new(4, 3));
        let mut held = Vec::new();
        let mut enter = |text: &str| {
            let watch = Watch::new();
            let entered = places.enter(ip(text), watch.clone()).map(|place| held.push(place));
            entered.map(|()| watch)
        };
        let single = enter("192.0.2.1").unwrap();
        tokio::time::advance(MIN_REST).await;
        let crowd: Vec<_> = (0..3).map(|_| enter("192.0.2.2").unwrap()).collect();
        // One of them is answered, which takes its time; the first of the others has rested longest.
        let busy = crowd[0].request();
        tokio::time::advance(MIN_REST / 2).await;
        drop(crowd[2].request());
        tokio::time::advance(MIN_REST / 2).await;
        enter("192.0.2.3").unwrap();
        assert!(crowd[1].is_dismissed());
        assert!(![&single, &crowd[0], &crowd[2]].iter().any(|watch| watch.is_dismissed()));
        // Two of each now have two at most: the address with two goes first, once one of its two rests.
        tokio::time::advance(MIN_REST / 2).await;
        enter("192.0.2.4").unwrap();
        assert!(crowd[2].is_dismissed() && !single.is_dismissed() && !crowd[0].is_dismissed());
        drop(busy);
        drop(held);
        assert_eq!(places.lock().n, 0);
        assert!(places.lock().by_ip.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_at_its_limit_loses_its_own() {
        let places = Arc::new(Places::new(10, 2));
        let (other, old) = (Watch::new(), Watch::new());
        let _other = places.enter(ip("192.0.2.1"), other.clone()).unwrap();
        let _old = places.enter(ip("192.0.2.2"), old.clone()).unwrap();
        tokio::time::advance(MIN_REST).await;
        let new = Watch::new();
        let _new = places.enter(ip("192.0.2.2"), new.clone()).unwrap();
        let _next = places.enter(ip("192.0.2.2"), Watch::new()).unwrap();
        assert!(old.is_dismissed() && !new.is_dismissed() && !other.is_dismissed());
        assert_eq!(places.enter(ip("192.0.2.2"), Watch::new()).err(), Some("per_ip"));
    }
}
