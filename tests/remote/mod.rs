//! Object stores on the network: real servers, and what goes wrong between them and the program.

mod clients;
mod harm;
mod hosts;
mod proxy;
mod servers;
